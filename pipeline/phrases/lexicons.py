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

DETERMINERS = words("a an the my our your his her its their this that these those i we you he she it they")
"""Stop words that begin phrases."""

NO_SENTENCE_ENDS = words("mr mrs ms dr prof st no vs co inc ltd mt ft jr sr lt col sgt gen capt ca etc ave")
"""Abbreviations, after which a full stop ends no sentence."""

TOP_LEVEL_DOMAINS = words("de fr ru io tv eu uk nl pl cz jp cn br js py")
"""Endings of names with a full stop, of sites and files."""

HTML_INLINE = words(
    """a abbr b big bdi bdo cite code del em font i ins kbd label mark q s small span strike strong sub sup tt u var
    wbr"""
)
"""HTML's elements within a line."""

FUNCTION_WORDS = words(
    """und mit ein eine einen einem einer über unter neben ist une avec dans sur et est uno una nel nella sulla uma com
    een het och ett på un"""
)
"""Of other languages, and hardly in English captions; "de", "con" and "van" are in too many names."""

ARTICLES = words("el la los las le les lo il der das die den")
"""Of other languages; before one word alone, as "El Paso" and "la croix sparkling water" begin with one too."""

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


ANY_WORDS = words(
    """all any dozens each enough every few hundreds less lots many more most multiple numerous plenty several some
    thousands various least over than"""
)
"""Words beside which a number is none, or not exact."""

ONE_WORDS = words("a an another one single that this")
"""Words of singulars."""

NUMBER_NAMES = words("size no no. number nr nr. model type series version level route")
"""Words before a number that counts nothing: "size 10 shoes"."""

UNITS = words(
    """kg g mg gram kilo lb lbs pound oz ounce ml cl l liter litre gallon pint quart mm cm m km inch foot ft yard mile
    meter metre watt volt amp mah mb gb tb hp star door seat piece pack year day hour minute"""
)
"""Units of numbers: what is before another noun, "5 kg bag", is no part of its name."""

SAME_PLURAL = words("aircraft bison cattle deer fish moose offspring salmon sheep shrimp spacecraft swine trout")
"""Nouns of which one and many are written alike."""

ALWAYS_PLURAL = words(
    """binoculars clothes eyeglasses glasses goggles headphones jeans leggings overalls pajamas pants pliers pyjamas
    scissors shorts spectacles sunglasses tights tongs trousers tweezers underpants"""
)
"""Nouns of one thing that are plurals."""


@lru_cache(maxsize=8)
def nonvisual(names: tuple[str, ...]) -> frozenset[str]:
    """Union of lists of non-visual nouns: ``wordnet``, ``owl_st``, ``grit``, ``frame``."""
    nouns: frozenset[str] = frozenset()
    for name in names:
        nouns |= nonvisual_nouns() if name == "wordnet" else {"owl_st": OWL_ST, "grit": GRIT, "frame": FRAME}[name]
    return nouns
