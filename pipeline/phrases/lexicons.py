"""Word lists with their sources."""

from __future__ import annotations

from functools import lru_cache

from pipeline.phrases.wordnet import nonvisual_nouns


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


STOP_WORDS = words(
    """a about above after again against all am an and any are as at be because been before being below between
    both but by can did do does doing don down during each few for from further had has have having he her
    here hers herself him himself his how i if in into is it its itself just me more most my myself no nor
    not now of off on once only or other our ours ourselves out over own s same she should so some such t
    than that the their theirs them themselves then there these they this those through to too under until
    up very was we were what when where which while who whom why will with you your yours yourself
    yourselves"""
)
"""NLTK's English stop words, as OWL-ST lists them (Minderer et al. 2023, appendix A.2)."""

OWL_ST = words(
    """alibaba aliexpress amazon available background blog buy co com description diy download facebook free gif hd
    ideas illustration illustrations image images img instagram jpg online org original page pdf photo
    photography photos picclick picture pictures png porn premium resolution royalty sale sex shutterstock
    stock svg thumbnail tumblr tumgir twitter uk uploaded vector vectors video videos wallpaper wallpapers
    wholesale www xxx youtube"""
)
"""Generic words among the thousand most common of alt-texts (OWL-ST, appendix A.2)."""

GRIT = frozenset({"time", "love", "freedom"})
"""Examples of abstract head nouns in Kosmos-2, section 2, step 1; GRIT's list is unpublished."""

FRAME = words(
    """photo photograph picture image shot pic snapshot view scene scenery background foreground front back top
    bottom side left right middle center centre corner edge end part kind sort type variety lot lots number
    couple pair group bunch series set collection time day night morning afternoon evening today yesterday
    week month year moment way love freedom happiness idea thing things something anything nothing"""
)
"""This project's list of words for the picture itself, positions in it, amounts and times."""


@lru_cache(maxsize=8)
def nonvisual(names: tuple[str, ...]) -> frozenset[str]:
    """Union of lists of non-visual nouns: ``wordnet``, ``owl_st``, ``grit``, ``frame``."""
    nouns: frozenset[str] = frozenset()
    for name in names:
        nouns |= nonvisual_nouns() if name == "wordnet" else {"owl_st": OWL_ST, "grit": GRIT, "frame": FRAME}[name]
    return nouns
