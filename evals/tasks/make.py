#!/usr/bin/env python3
"""Writes schema.jsonl, calls.jsonl and instructions.jsonl: items of our own, from lists below and a seed."""
import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEOPLE = "Amira Bruno Chidi Dorota Emre Farah Goran Hana Ivo Jun Kemal Lucia Mateo Nadia Oskar Priya Quentin Rosa Samir Tove".split()
TOWNS = "Lisbon Bergen Osaka Cusco Tallinn Accra Hobart Quito Galway Izmir".split()
THINGS = ["ladder", "teapot", "bicycle", "lantern", "violin", "compass", "raincoat", "suitcase", "kettle", "notebook"]
TOPICS = ["a lighthouse in winter", "a lost umbrella", "the first day at a bakery", "a train that is late", "a garden on a roof",
          "two neighbours and a piano", "a letter found in a book", "a walk before sunrise", "learning to swim", "an old clock"]


def write(name, items):
    with open(HERE / name, "w") as f:
        f.writelines(json.dumps({"id": f"{Path(name).stem}-{n}", **item}) + "\n" for n, item in enumerate(items))


def field(r):
    """(name, schema, value, how a sentence says it)"""
    kind = r.randrange(6)
    if kind == 0:
        value = r.randint(1, 90)
        return "age", {"type": "integer", "minimum": 0}, value, f"is {value} years old"
    if kind == 1:
        value = r.choice(TOWNS)
        return "city", {"type": "string"}, value, f"lives in {value}"
    if kind == 2:
        value = r.random() < 0.5
        return "member", {"type": "boolean"}, value, "is a member" if value else "is not a member"
    if kind == 3:
        value = r.sample(THINGS, r.randint(1, 3))
        return "items", {"type": "array", "items": {"type": "string"}, "minItems": 1}, value, f"ordered {', '.join('a ' + v for v in value)}"
    if kind == 4:
        value = r.choice(["low", "medium", "high"])
        return "priority", {"enum": ["low", "medium", "high"]}, value, f"asked for {value} priority"
    value = r.randint(2, 400) / 4
    return "total", {"type": "number"}, value, f"paid {value:.2f} euros in total"


def schemas(r):
    for _ in range(120):
        name, fields = r.choice(PEOPLE), {}
        while len(fields) < r.choice([2, 3, 3, 4]):
            key, schema, value, said = field(r)
            fields.setdefault(key, (schema, value, said))
        schema = {"type": "object", "properties": {"name": {"type": "string"}, **{k: f[0] for k, f in fields.items()}},
                  "required": ["name", *fields], "additionalProperties": False}
        sentence = f"{name} {'; '.join(f[2] for f in fields.values())}."
        yield {"prompt": f"Write the facts of this sentence as one JSON object that follows the schema, and nothing else.\n\n"
                         f"Schema: {json.dumps(schema)}\n\nSentence: {sentence}",
               "schema": schema, "answer": {"name": name, **{k: f[1] for k, f in fields.items()}}}


def tool(name, about, **parameters):
    return {"name": name, "description": about,
            "parameters": {"type": "object", "properties": parameters, "required": list(parameters), "additionalProperties": False}}


TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
TOOLS = {
    "get_weather": (tool("get_weather", "Weather of a city on a day", city=TEXT, days_from_now=WHOLE),
                    lambda r: (lambda c, d: (f"Will it rain in {c} {d} days from now?", {"city": c, "days_from_now": d}))(r.choice(TOWNS), r.randint(2, 6))),
    "set_timer": (tool("set_timer", "Start a timer", minutes=WHOLE, label=TEXT),
                  lambda r: (lambda m, t: (f"Set a timer of {m} minutes and call it \"{t}\".", {"minutes": m, "label": t}))(r.randint(2, 55), r.choice(THINGS))),
    "send_message": (tool("send_message", "Send a message to a contact", contact=TEXT, text=TEXT),
                     lambda r: (lambda p, t: (f"Tell {p} exactly this: \"Please bring the {t}\".", {"contact": p, "text": f"Please bring the {t}"}))(r.choice(PEOPLE), r.choice(THINGS))),
    "convert_units": (tool("convert_units", "Convert a quantity", value={"type": "number"}, source=TEXT, target=TEXT),
                      lambda r: (lambda v, u: (f"How much is {v} {u[0]} in {u[1]}?", {"value": v, "source": u[0], "target": u[1]}))(
                          r.randint(2, 300), r.choice([("miles", "kilometers"), ("pounds", "kilograms"), ("liters", "gallons")]))),
    "add_to_cart": (tool("add_to_cart", "Put a product into the shopping cart", product=TEXT, quantity=WHOLE),
                    lambda r: (lambda n, t: (f"Put {n} of the product \"{t}\" into my cart.", {"product": t, "quantity": n}))(r.randint(2, 12), r.choice(THINGS))),
}


def calls(r):
    for _ in range(80):
        names = r.sample(list(TOOLS), 3)
        functions = [TOOLS[n][0] for n in names]
        wanted = r.choice(names)
        request, arguments = TOOLS[wanted][1](r)
        yield {"prompt": f"You can call these functions:\n{json.dumps(functions)}\nAnswer with one call and nothing else, as JSON: "
                         f"{{\"name\": ..., \"arguments\": {{...}}}}\n\n{request}",
               "functions": functions, "answer": {"name": wanted, "arguments": arguments}}


def instruction(r, topic):
    """(name, arguments, how it is said)"""
    n, word = r.randint(2, 4), r.choice(THINGS)
    return r.choice([
        ("punctuation:no_comma", {}, "Do not use any commas."),
        ("change_case:english_lowercase", {}, "Use lowercase letters only."),
        ("change_case:english_capital", {}, "Use capital letters only."),
        ("startend:quotation", {}, "Wrap the whole answer in double quotation marks."),
        ("startend:end_checker", {"end_phrase": "That is all."}, "End with exactly this phrase: That is all."),
        ("detectable_format:title", {}, "Give it a title wrapped in double angular brackets, such as <<title>>."),
        ("detectable_format:number_bullet_lists", {"num_bullets": n}, f"Use exactly {n} bullet points that begin with \"* \"."),
        ("keywords:existence", {"keywords": [word]}, f"Use the word \"{word}\"."),
        ("keywords:forbidden_words", {"forbidden_words": ["the"]}, "Do not use the word \"the\"."),
        ("keywords:frequency", {"keyword": word, "frequency": n, "relation": "at least"}, f"Use the word \"{word}\" at least {n} times."),
        ("length_constraints:number_words", {"num_words": 30 + 10 * n, "relation": "less than"}, f"Use fewer than {30 + 10 * n} words."),
        ("length_constraints:number_sentences", {"num_sentences": n, "relation": "at least"}, f"Use at least {n} sentences."),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Add a postscript at the end that begins with P.S."),
        ("detectable_content:number_placeholders", {"num_placeholders": n}, f"Use at least {n} placeholders in square brackets, such as [name]."),
    ])


APART = [{"change_case:english_lowercase", "change_case:english_capital"}, {"change_case:english_lowercase", "startend:end_checker"},
         {"change_case:english_capital", "startend:end_checker"}, {"startend:quotation", "startend:end_checker"},
         {"change_case:english_lowercase", "detectable_content:postscript"}, {"startend:end_checker", "detectable_content:postscript"}]


def instructions(r):
    for _ in range(100):
        topic, chosen = r.choice(TOPICS), []
        while len(chosen) < r.choice([1, 2]):
            new = instruction(r, topic)
            names = {new[0], *(c[0] for c in chosen)}
            if len(names) == len(chosen) + 1 and not any(pair <= names for pair in APART):
                chosen.append(new)
        yield {"prompt": f"Write a short text about {topic}. " + " ".join(c[2] for c in chosen),
               "instructions": [c[0] for c in chosen], "arguments": [c[1] for c in chosen]}


for number, (name, make) in enumerate({"schema.jsonl": schemas, "calls.jsonl": calls, "instructions.jsonl": instructions}.items()):
    write(name, make(random.Random(number)))
