"""Collect the drawings that `lvlm_interp.reference.scenes` shows into one sheet per style.

    python tools/collect_sprites.py GOOGLE TWITTER FLUENT lvlm_interp/reference/sprites

GOOGLE and TWITTER are unpacked npm packages `emoji-datasource-google` and `emoji-datasource-twitter`
(16.0.0), FLUENT is the unpacked `@lobehub/fluent-emoji-3d` (1.1.0). A noun is kept when all three draw it.
"""

import json
import sys
from pathlib import Path

from PIL import Image

SIZE, COLUMNS = 64, 16

# Nouns whose Unicode name is the noun itself.
PLAIN = """
mouse cow tiger leopard rabbit cat dragon crocodile whale snail snake horse goat sheep monkey rooster dog pig elephant
octopus bug ant fish turtle bird penguin koala dolphin spider crab scorpion turkey eagle duck bat shark owl butterfly
deer gorilla lizard rhinoceros shrimp squid hedgehog kangaroo llama peacock hippopotamus parrot raccoon lobster
mosquito swan sloth otter flamingo beaver seal worm donkey cactus tulip rose sunflower mushroom tomato grapes melon
watermelon lemon banana pineapple pear peach cherries strawberry hamburger taco burrito bread cookie candy lollipop
pretzel sandwich cupcake garlic onion waffle butter carrot potato cucumber bacon avocado croissant coconut broccoli
pie doughnut popcorn crown eyeglasses necktie jeans dress handbag lipstick pill ring bomb guitar violin trumpet
saxophone microphone headphone hammer wrench key lock bell candle telescope microscope umbrella chair bed toilet
bathtub door ladder mirror bucket broom basket camera television radio envelope pencil crayon axe magnet rocket
helicopter bus taxi tractor bicycle ship canoe tent fountain anchor volcano rainbow cloud snowman
""".split()

# Nouns whose Unicode name says more than the noun.
RENAMED = {
    "black scissors": "scissors",
    "open book": "book",
    "lady beetle": "ladybug",
    "slice of pizza": "pizza",
    "hot dog": "hot dog",
    "red apple": "apple",
    "airplane": "airplane",
    "automobile": "car",
    "t-shirt": "shirt",
    "mans shoe": "shoe",
    "top hat": "hat",
    "electric light bulb": "light bulb",
    "honeybee": "bee",
    "house building": "house",
    "evergreen tree": "tree",
    "balloon": "balloon",
    "soccer ball": "ball",
    "wrapped present": "gift",
    "teddy bear": "teddy bear",
    "frog face": "frog",
    "lion face": "lion",
    "fox face": "fox",
    "panda face": "panda",
    "bear face": "bear",
    "zebra face": "zebra",
    "giraffe face": "giraffe",
    "unicorn face": "unicorn",
    "watch": "watch",
    "alarm clock": "clock",
    "sailboat": "boat",
    "fire": "fire",
    "glass of milk": "milk",
    "cheese wedge": "cheese",
    "egg": "egg",
    "beer mug": "beer",
    "wine glass": "wine",
    "hot beverage": "coffee",
    "ice cream": "ice cream",
    "birthday cake": "cake",
    "spoon": "spoon",
    "chocolate bar": "chocolate",
}


def images(google: Path, twitter: Path, fluent: Path) -> dict[str, dict[str, Path]]:
    """Noun → style → file, for the nouns that all three styles draw."""
    wanted = {name: name for name in PLAIN} | RENAMED
    found: dict[str, dict[str, Path]] = {}
    for entry in json.loads((google / "emoji.json").read_text()):
        noun = wanted.get(entry["name"].lower())
        stem = entry["unified"].lower()
        files = {
            "google": google / "img/google/64" / entry["image"],
            "twitter": twitter / "img/twitter/64" / entry["image"],
            "fluent": next(
                (p for s in (stem, stem.replace("-fe0f", "")) if (p := fluent / f"assets/{s}.webp").exists()),
                Path("absent"),
            ),
        }
        if noun and noun not in found and all(f.exists() for f in files.values()):
            found[noun] = files
        elif noun and noun not in found:
            print("not drawn by all:", noun, [s for s, f in files.items() if not f.exists()])
    print("unknown nouns:", sorted(set(wanted.values()) - set(found)))
    return dict(sorted(found.items()))


def sheet(files: list[Path]) -> Image.Image:
    """All drawings of one style, row by row, on a transparent ground."""
    rows = -(-len(files) // COLUMNS)
    page = Image.new("RGBA", (COLUMNS * SIZE, rows * SIZE))
    for i, file in enumerate(files):
        drawing = Image.open(file).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        page.paste(drawing, (i % COLUMNS * SIZE, i // COLUMNS * SIZE))
    return page


def main(google: str, twitter: str, fluent: str, out: str) -> None:
    found = images(Path(google), Path(twitter), Path(fluent))
    for style in ("google", "twitter", "fluent"):
        sheet([files[style] for files in found.values()]).save(Path(out) / f"{style}.png", optimize=True)
    (Path(out) / "nouns.json").write_text(json.dumps(list(found), indent=0) + "\n")
    print(len(found), "nouns")


if __name__ == "__main__":
    main(*sys.argv[1:])
