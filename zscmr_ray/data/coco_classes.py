"""The 80 classes of COCO: their names, the words by which captions name them, and two published zero-shot class splits.

The words are our own list, for finding classes in captions (Flickr has none) and for keeping captions that name an
unseen class out of training. Matching is by whole words, singular or plural, the longest name first: a hot dog is no dog.
Not the rule that uses it: `no_leak.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

# The name, then other words for it. A word may stand for one class only.
_WORDS = """
person: people, man, men, woman, women, boy, girl, child, children, kid, toddler, baby, infant, lady, guy, male,
    female, adult, teenager, teen, player, rider, skier, surfer, skateboarder, snowboarder, biker, cyclist, bicyclist,
    climber, hiker, runner, swimmer, dancer, worker, crowd, couple, friend, mother, father, son, daughter, boyfriend,
    girlfriend, gentleman, gentlemen, policeman, policemen, officer, soldier, fisherman, batter, catcher, pitcher,
    performer, musician, singer, guitarist, athlete, spectator, pedestrian, bride, groom, clown, cowboy, someone,
    somebody, skater, wrestler, boxer, goalie, cheerleader, artist, vendor, student, teacher, chef, waiter, waitress
bicycle: bike, tricycle
car: automobile, taxi, cab, suv, jeep, minivan, sedan, van, convertible
motorcycle: motorbike, dirt bike, dirtbike, moped, scooter, motor bike, motor cycle
airplane: plane, aeroplane, aircraft, jet, jetliner, airliner, biplane
bus: busses, minibus, double decker, schoolbus
train: locomotive, subway, tram, trolley, streetcar
truck: pickup, lorry, firetruck, fire engine, semi
boat: ship, canoe, kayak, sailboat, raft, ferry, yacht, rowboat, speedboat, motorboat, gondola
traffic light: stoplight, stop light, traffic signal, street light
fire hydrant: hydrant
stop sign: stopsign
parking meter: street meter
bench:
bird: duck, goose, geese, pigeon, seagull, gull, parrot, owl, swan, eagle, hawk, crow, rooster, penguin, flamingo
cat: kitten, kitty, feline
dog: puppy, pup, canine, doggy, greyhound, terrier, poodle, labrador, retriever, collie, dalmatian, beagle,
    bulldog, husky, dachshund, pug, spaniel, chihuahua, german shepherd, hound, mutt
horse: pony, foal, stallion, mare, bronco
sheep: lamb, ram
cow: cattle, bull, calf, calves, ox, oxen, steer
elephant:
bear: cub, polar bear, grizzly
zebra:
giraffe:
backpack: rucksack, knapsack, back pack
umbrella: parasol
handbag: purse, hand bag, pocketbook
tie: necktie, bow tie, bowtie
suitcase: luggage, suit case, briefcase
frisbee: flying disc, flying disk
skis: ski
snowboard: snow board
sports ball: ball, baseball, basketball, football, volleyball, soccer ball, tennis ball, beach ball, softball
kite:
baseball bat: bat
baseball glove: mitt, catcher mitt
skateboard: skate board, longboard
surfboard: surf board, boogie board, bodyboard
tennis racket: racket, racquet, tennis racquet
bottle: beer bottle, water bottle
wine glass: wineglass, glass of wine, goblet
cup: mug, teacup, coffee cup
fork:
knife: knives
spoon: ladle
bowl:
banana:
apple:
sandwich: burger, hamburger, cheeseburger, panini
orange: tangerine
broccoli:
carrot:
hot dog: hotdog
pizza:
donut: doughnut, bagel
cake: cupcake, birthday cake, cheesecake
chair: armchair, stool, rocker, recliner
couch: sofa, loveseat, futon
potted plant: houseplant, house plant, pot plant
bed: mattress, bunk
dining table: table, desk, picnic table
toilet: urinal, commode
tv: television, television set, tv set
laptop: notebook computer
mouse: computer mouse, mice
remote: remote control
keyboard: computer keyboard
cell phone: cellphone, mobile phone, phone, smartphone, telephone, iphone
microwave: microwave oven
oven: stove
toaster:
sink: washbasin, basin
refrigerator: fridge, freezer
book: novel, textbook
clock: clock tower
vase:
scissors: scissor
teddy bear: teddy, stuffed bear
hair drier: hair dryer, hairdryer, blow dryer, hairdrier
toothbrush: tooth brush
"""
# What holds a class's name and is no such thing: it makes no class. It still names one where captions must not.
_OTHERS = (
    "orange shirt, orange jacket, orange vest, bright orange, bus stop, bus station, train station, train track, railroad "
    "track, boat house, bird house, book store, tie dye, cup holder, table tennis, toy car, bike rack, remote area"
)

# Bansal et al. (ECCV 2018): 48 seen, 17 unseen; the other 15 are in neither.
UNSEEN_17 = (
    "airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup", "knife",
    "cake", "couch", "keyboard", "sink", "scissors",
)  # fmt: skip
NEITHER_15 = (
    "traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball", "baseball bat", "baseball glove",
    "tennis racket", "wine glass", "hot dog", "potted plant", "dining table", "cell phone", "teddy bear", "hair drier",
)  # fmt: skip
# Rahman et al. (2018): 65 seen, 15 unseen.
UNSEEN_15 = (
    "airplane", "train", "parking meter", "cat", "bear", "suitcase", "frisbee", "snowboard", "fork", "sandwich", "hot dog",
    "toilet", "mouse", "toaster", "hair drier",
)  # fmt: skip


@cache
def class_words() -> dict[str, tuple[str, ...]]:
    """The words of each class, its name first, in COCO's order."""
    joined = _WORDS.strip().replace("\n    ", " ")
    rows = (line.partition(":") for line in joined.splitlines())
    return {
        name: (name, *(word for part in words.split(",") if (word := part.strip())))
        for name, _, words in rows
    }


def coco_seen(unseen: Sequence[str]) -> tuple[str, ...]:
    """The seen classes of the 48/17 or the 65/15 split, in COCO's order."""
    out = {*unseen, *(NEITHER_15 if tuple(unseen) == UNSEEN_17 else ())}
    return tuple(name for name in class_words() if name not in out)


def classes_named(caption: str) -> frozenset[str]:
    """The classes that a caption shows.

    >>> sorted(classes_named("Two hot-dogs and a puppy on the benches at a bus stop"))
    ['bench', 'dog', 'hot dog']
    """
    return name_matcher(tuple(class_words()), except_others=True).named(caption)


def caption_classes(captions: Iterable[str], *, min_captions: int = 2) -> tuple[str, ...]:
    """The classes that at least so many of an item's captions name, the most often named first.

    Ties go to what is not a person (people are in most scenes), then by COCO's order.

    >>> caption_classes(["a man and his dog", "the dogs run", "a man", "a cat"])
    ('dog', 'person')
    """
    counts = Counter(name for caption in captions for name in classes_named(caption))
    order = {name: place for place, name in enumerate(class_words())}
    chosen = [name for name, count in counts.items() if count >= min_captions]
    return tuple(sorted(chosen, key=lambda name: (-counts[name], name == "person", order[name])))


@dataclass(frozen=True, slots=True)
class NameMatcher:
    """Finds class names in captions: whole words, singular or plural, hyphens as spaces, the longest name first."""

    pattern: re.Pattern[str]
    owner: dict[str, str | None]

    def named(self, caption: str) -> frozenset[str]:
        """The classes whose name, or another word for them, is in the caption."""
        words = (_plain(match.group(1)) for match in self.pattern.finditer(caption.lower()))
        return frozenset(name for word in words if (name := self.owner[word]) is not None)


@cache
def name_matcher(classes: tuple[str, ...], *, except_others: bool = False) -> NameMatcher:
    """A matcher of some classes: COCO's by their words, any other by its name alone.

    The words of all of COCO's classes are looked for, so that a hot dog names no dog. `except_others`: a bus stop names
    no bus.

    >>> sorted(name_matcher(("bus", "tower")).named("Towers by a bus stop with hot dogs"))
    ['bus', 'tower']
    """
    wanted = frozenset(classes)
    words = {**{name: (name,) for name in classes}, **class_words()}
    owner: dict[str, str | None] = {}
    for name, own in words.items():
        for word in own:
            for form in _plurals(_plain(word.lower())):
                owner[form] = name if name in wanted else None
    for word in _OTHERS.split(", ") if except_others else ():
        owner |= dict.fromkeys(_plurals(word))
    longest_first = sorted(owner, key=lambda form: (-len(form), form))
    forms = "|".join(re.escape(form).replace(r"\ ", r"[\s-]+") for form in longest_first)
    return NameMatcher(re.compile(rf"(?<!\w)({forms})(?:['’]s)?(?!\w)"), owner)


def _plurals(word: str) -> set[str]:
    """A word and its regular plural."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return {word, f"{word}es"}
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return {word, f"{word[:-1]}ies"}
    return {word, f"{word}s"}


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text)
