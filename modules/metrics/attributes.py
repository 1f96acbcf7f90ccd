"""Lists of attributes: as written by a person, as shipped, and as found in captions."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from .hcs import AttributeListError

TEMPLATE = "a photo of {}"
LIMIT = 400                                             # attributes of a list
IN_CAPTIONS = (0.01, 0.9)                               # shares of captions a word is in to be an attribute
# The lists of the official code, spelling included: it changes the features.
FFHQ = ("man, woman, child, arched eyebrows, smiling, wearing hat, wearing eyeglasses, wearing necklace, blonde hair, "
        "black hair, bangs, gray hair, wavy hair, bald head, red lip, makeup, wearing earlings, beard, double chin, "
        "young")
FFHQ_GPT = ("clean-shaven, beard, mustache, Wide-eyed, thin lips, bald, glasses-wearing, Freckled, almond-shaped eyes, "
            "Scarred, Wrinkled, soul patch, high forehead, hooded eyes, piercings, prominent cheekbones, full lips, "
            "braided, Upturned-nosed, Youthful")
CATS = ("green eyes, blue eyes, pink nose, black fur, white fur, yellow eyes, fluffy fur, solid color, black nose, "
        "tabby pattern, white paws, gray fur, brown fur, round eyes, calico pattern, orange fur, pointed ears, "
        "tufted ears, slanted eyes, long tail")
COCO = ("man, woman, he, people, person, table, group, street, water, plate, cat, field, couple, dog, food, beach, "
        "bed, bathroom, pizza, grass, kitchen, skateboard, picture, road, train, building, snow, surfboard, toilet, "
        "giraffe")
SHIPPED = {"faces (FFHQ, CelebA)": FFHQ, "faces, by a language model": FFHQ_GPT, "cats (LSUN)": CATS,
           "things (COCO)": COCO}
STOP = frozenset("""a an the this that these those of on in at by to from with without into over under near next beside
    behind between and or but not no is are was were be been being has have had do does its it he she they his her their
    him them we you i my your our there here some any very two three one who which while as for up down out off photo
    image picture background photograph close view shot""".split())


@dataclass(frozen=True)
class Attribute:
    """One attribute: what it is called, the texts that mean it, and its group's heading."""

    name: str
    phrasings: tuple[str, ...] = ()         # () = the name in the template
    group: str = ""

    def texts(self, template: str) -> tuple[str, ...]:
        return self.phrasings or (template.format(self.name),)


@dataclass(frozen=True)
class AttributeList:
    """Attributes in their order. `parse_attributes` and `attributes_of_captions` make it."""

    attributes: tuple[Attribute, ...]
    template: str = TEMPLATE
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self.attributes)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(attribute.group for attribute in self.attributes)

    @property
    def hash(self) -> str:
        """A name of the list with all that changes scores. Scores of two lists are not comparable."""
        told = [self.template, *(f"{a.group}|{a.name}|{'|'.join(a.phrasings)}" for a in self.attributes)]
        return blake2b("\n".join(told).encode(), digest_size=6).hexdigest()

    def report(self) -> str:
        """In words."""
        groups = list(dict.fromkeys(group for group in self.groups if group))
        told = f" in {len(groups)} groups ({', '.join(groups)})" if groups else ""
        lines = [f"{len(self.attributes)} attributes{told}, list {self.hash}: "
                 f"{', '.join(self.names[:30])}{', ...' if len(self.names) > 30 else ''}"]
        if not 10 <= len(self.attributes) <= 50:
            lines.append("10 to 30 attributes are usual: every score depends on the whole list.")
        return "\n".join([*lines, *self.notes])


def parse_attributes(text: str, template: str = TEMPLATE) -> AttributeList:
    """A list as a person writes it.

    A line is an attribute: its name, or `name: phrasing | phrasing`, whose features are averaged (without a name the
    first phrasing is it). A line that ends in a
    colon is the heading of a group of attributes that exclude each other. Commas part attributes where no line has a
    colon. Lines that begin with # are left out, and so are repeated names, with a note.

    Raises AttributeListError for an empty list, a template without {}, a phrasing without words.
    """
    if template.count("{}") != 1:
        raise AttributeListError(f"The template is {template!r}; expected a text with one {{}} where the attribute "
                                 f"goes, e.g. {TEMPLATE!r}.")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not any(":" in line or "|" in line for line in lines):
        lines = [part.strip() for line in lines for part in line.split(",") if part.strip()]
    found, group, again = {}, "", []
    for line in lines:
        if line.endswith(":"):
            group = line[:-1].strip()
            continue
        name, colon, rest = line.partition(":")
        rest = rest if colon else line if "|" in line else ""
        name = (name if colon else line.partition("|")[0]).strip()
        phrasings = tuple(part.strip() for part in rest.split("|")) if rest or colon else ()
        if not name or not all(phrasings):
            raise AttributeListError(f"The line {line!r} has an empty part. Write `name` or `name: text | text`.")
        if name.casefold() in found:
            again.append(name)
        else:
            found[name.casefold()] = Attribute(name, phrasings, group)
    if not found:
        raise AttributeListError("The list of attributes is empty. Write one attribute a line, e.g. `smiling`.")
    if len(found) > LIMIT:
        raise AttributeListError(f"The list has {len(found)} attributes; at most {LIMIT} are read. 10 to 30 are usual.")
    notes = [f"named twice and taken once: {', '.join(again)}"] if again else []
    return AttributeList(tuple(found.values()), template, tuple(notes))


def attributes_of_captions(captions: Sequence[str], count: int = 20, template: str = TEMPLATE) -> AttributeList:
    """The words and pairs of neighbouring words that are in most captions, but in 1 % to 90 % of them.

    Words of function, adverbs in -ly and what every caption says ("photo") are left out; a word that is nearly always
    part of one pair is told by the pair. Raises AttributeListError where fewer than two are left.
    """
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise AttributeListError("No picture of the folder has a caption. Write NAME.txt beside the pictures, or write "
                                 "the attributes yourself.")
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(set(_terms(caption)))
    least, most = (share * len(captions) for share in IN_CAPTIONS)
    kept = [term for term, number in counts.most_common() if max(2, least) <= number <= most]
    pairs = [term for term in kept if " " in term]
    kept = [term for term in kept if " " in term or not any(
        term in pair.split() and counts[pair] > 0.9 * counts[term] for pair in pairs)]
    kept = sorted(kept, key=lambda term: (-counts[term], term))[:count]
    if len(kept) < 2:
        raise AttributeListError(f"{len(captions)} captions have fewer than two words in common that could be "
                                 "attributes. Write the attributes yourself.")
    return AttributeList(tuple(map(Attribute, kept)), template, (f"from the captions of {len(captions)} pictures",))


def _terms(caption: str) -> Iterable[str]:
    """Words that may be attributes, and pairs of neighbours of such."""
    before = None
    for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*|[.,;:!?]", caption.lower()):
        useful = len(word) > 1 and word not in STOP and not word.endswith("ly")
        if useful:
            yield word
            if before:
                yield f"{before} {word}"
        before = word if useful else None
