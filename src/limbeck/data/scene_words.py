"""The things that scenes are made of: 144 emojis with common names, in ten groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from limbeck.data.builtin import emojis, with_article
from limbeck.data.examples import number_of

_GROUPS = {
    "fruit": "red apple=apple, banana, lemon, tangerine, pear, pineapple, strawberry, watermelon, kiwi fruit=kiwi, "
    "coconut, peach, mango",
    "vegetable": "carrot, broccoli, eggplant, potato, ear of corn=corn cob, hot pepper=chilli, cucumber, onion, "
    "garlic, mushroom, tomato, bell pepper=pepper",
    "snack": "hamburger, pizza, hot dog, sandwich, taco, croissant, pretzel, doughnut, cookie, cupcake, lollipop, "
    "waffle",
    "animal": "dog, cat, rabbit, fox, elephant, tiger, pig, frog, penguin, owl, horse, giraffe, turtle, octopus, crab, "
    "shrimp, fish, dolphin, spouting whale=whale, shark, seal, lobster, squid, blowfish, honeybee=bee, butterfly, "
    "lady beetle=ladybug, ant, spider, scorpion, snail, bug=caterpillar, mosquito, beetle, worm, fly",
    "vehicle": "automobile=car, taxi, bus, ambulance, tractor, bicycle, motorcycle, locomotive=train, airplane, "
    "helicopter, rocket, sailboat",
    "garment": "t-shirt=shirt, dress, coat, scarf, running shoe=sneaker, woman's boot=boot, top hat=hat, crown, "
    "kimono, backpack, handbag, ring",
    "tool": "hammer, axe, wrench, screwdriver, carpentry saw=saw, key, ladder, magnet, broom, bucket, pencil, razor",
    "instrument": "guitar, violin, trumpet, saxophone, drum, accordion, banjo, flute, musical keyboard=piano, harp, "
    "long drum=conga, bell",
    "toy": "soccer ball, basketball, tennis=tennis ball, puzzle piece, kite, flying disc=frisbee, balloon, teddy bear, "
    "game die=die, boxing glove, parachute, roller skate",
    "plant": "cactus, sunflower, rose, tulip, palm tree, evergreen tree=fir tree, four leaf clover=clover, maple leaf, "
    "hibiscus, seedling, potted plant, hyacinth",
}
_UNCHANGED = {"fish", "blowfish", "shrimp", "squid", "broccoli", "garlic"}
_IRREGULAR = {"die": "dice", "scarf": "scarves", "maple leaf": "maple leaves"}
_IRREGULAR |= {name: f"{name}es" for name in ("potato", "tomato", "mango", "mosquito")}


@dataclass(frozen=True)
class Thing:
    """A kind of thing that can stand in a scene."""

    name: str
    group: str
    code: str
    """of its emoji"""

    @property
    def a(self) -> str:
        """The name with its article."""
        return with_article(self.name)

    def count(self, number: int) -> str:
        """ "a dog", "two dogs" """
        return self.a if number == 1 else f"{NUMBERS[number]} {plural(self.name)}"


NUMBERS = ("no", "one", "two", "three", "four")


@cache
def things() -> tuple[Thing, ...]:
    """All 144 in a fixed order that mixes the groups, so that the first N are a fair smaller vocabulary."""
    codes = {entry.name: entry.code for entry in emojis()}
    found = []
    for group, entries in _GROUPS.items():
        for entry in entries.split(", "):
            emoji_name, _, common_name = entry.partition("=")
            found.append(Thing(name=common_name or emoji_name, group=group, code=codes[emoji_name]))
    return tuple(sorted(found, key=lambda thing: number_of(thing.name)))


def plural(name: str) -> str:
    """The plural of a thing's or a group's name."""
    if name in _UNCHANGED:
        return name
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "ch", "sh")) else f"{name}s"
