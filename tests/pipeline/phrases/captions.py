"""Captions as crawls have them, for hypothesis: things, shop talk, marks, many scripts."""

from hypothesis import strategies as st

_TEXT = (
    "a the two red small wooden old dog dogs cat man woman car trees palm pool bench street photo view time love "
    "and or & , , of in on with near next to standing who holds it she everyone this that isn't dog's T-shirt gonna "
    "let's there is are has got it's . ! | - ( ) \" ... $49.99 50 dollars 20% off BUY NOW www.shop.com "
    "https://x.y/z stock "
    "IMG_2034.jpg me@x.org Paris MacBook élan café naïve 犬 собака ＦＵＬＬ ﬁsh 🚲 👩‍👩‍👧 e\u0301 \u00a0 \u200b \n \t  "
    "2024 3rd İstanbul ß"
)
WORDS = _TEXT.split(" ")


def captions(max_words: int = 14) -> st.SearchStrategy[str]:
    """Words of all kinds, mostly with single spaces between."""
    spaces = st.sampled_from([" ", " ", " ", " ", "", "  ", "\u2003"])
    pairs = st.lists(st.tuples(st.sampled_from(WORDS), spaces), max_size=max_words)
    return pairs.map(lambda found: "".join(word + space for word, space in found))


DIRT = [
    "😍", "⚽", "&amp;", "&quot;", "&nbsp;", "&#39;", "&#x1F600;", "&eacute;", "&amp;quot;",
    "&lt;b&gt;", "&", "<b>", "</b>", "<br/>", "<p class='x'>", "<!-- x -->", "#dog", "#puppylove",
    "@doglover", "|", " | ", " - ", "–", "—", "•", "\u200b", "\u00ad", "\ufeff", "\u0000", "\u202e",
    "�", "…", ".", "...", "™", "*", "_", "[b]", ":)", "<3", "NEW", "BRAND NEW SOFA", "\n", "\r\n",
    "“", "’", "Hund", "кошка", "赤い",
]  # fmt: skip


def dirty_captions(max_pieces: int = 16) -> st.SearchStrategy[str]:
    """Captions with what the web puts between and into their words."""
    piece = st.one_of(st.sampled_from(WORDS), st.sampled_from(DIRT), st.sampled_from(WORDS))
    parts = st.lists(st.tuples(piece, st.sampled_from([" ", " ", ""])), max_size=max_pieces)
    return parts.map(lambda found: "".join(word + space for word, space in found))
