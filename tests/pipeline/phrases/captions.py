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
