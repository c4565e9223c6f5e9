#!/usr/bin/env python3
"""Writes math.txt: problems with worked solutions, made at random from a seed, behind the ones written by hand in math_by_hand.txt.

    python3 calibration/make_math.py > calibration/math.txt
"""
import random
from fractions import Fraction
from math import gcd
from pathlib import Path

R = random.Random(20240229)
NAMES = "Amara Bo Chidi Dorota Esme Farouk Gita Hana Ivo Jun Kofi Lior Mirela Nadia Oskar Pilar Quynh Rui Sanna Teo".split()
THINGS = "apples tickets stamps marbles notebooks seedlings tiles candles eggs postcards".split()


def linear():
    a, x, b = R.randint(2, 12), R.randint(-9, 15), R.randint(-30, 30)
    c = a * x + b
    sign = f"+ {b}" if b >= 0 else f"- {-b}"
    back = f"Subtract {b} from" if b >= 0 else f"Add {-b} to"
    return f"Solve for x: {a}x {sign} = {c}.\n\n{back} both sides: {a}x = {c - b}. Divide by {a}: x = {x}.\n\nCheck: {a} * {x} {sign} = {a * x} {sign} = {c}."


def quadratic():
    p, q = sorted(R.sample([n for n in range(-9, 10) if n], 2))
    b, c = -(p + q), p * q
    term = lambda n, s: (f" + {n}{s}" if n > 0 else f" - {-n}{s}") if n else ""
    return (f"Find the roots of x^2{term(b, 'x')}{term(c, '')} = 0.\n\nWe need two numbers whose sum is {p + q} and whose product is {c}: "
            f"{p} and {q}. So the polynomial is (x{term(-p, '')})(x{term(-q, '')}), and the roots are x = {p} and x = {q}. "
            f"The discriminant confirms it: ({b})^2 - 4 * {c} = {b * b - 4 * c} = {q - p}^2.")


def fraction():
    a, b = Fraction(R.randint(1, 9), R.randint(2, 12)), Fraction(R.randint(1, 9), R.randint(2, 12))
    common = a.denominator * b.denominator // gcd(a.denominator, b.denominator)
    x, y = a.numerator * common // a.denominator, b.numerator * common // b.denominator
    return (f"What is {a} + {b}?\n\nThe least common denominator of {a.denominator} and {b.denominator} is {common}. "
            f"{a} = {x}/{common} and {b} = {y}/{common}, so the sum is {x + y}/{common}" + (f" = {a + b}." if a + b != Fraction(x + y, 1) / common or (a + b).denominator != common else "."))


def percent():
    price, off, tax = R.randrange(20, 400, 5), R.choice([10, 15, 20, 25, 30, 40]), R.choice([5, 8, 19, 21])
    low = price * (100 - off) / 100
    return (f"A coat costs {price} euros. It is reduced by {off} %, and then {tax} % tax is added. What does {R.choice(NAMES)} pay?\n\n"
            f"The reduction is {price} * {off / 100:g} = {price * off / 100:.2f}, which leaves {low:.2f}. The tax is {low:.2f} * {tax / 100:g} = {low * tax / 100:.2f}. "
            f"Together: {low * (100 + tax) / 100:.2f} euros.")


def share():
    a, b = R.sample(NAMES, 2)
    k, n, thing = R.randint(2, 5), R.randint(4, 30), R.choice(THINGS)
    return (f"{a} has {k} times as many {thing} as {b}. Together they have {n * (k + 1)}. How many does each have?\n\n"
            f"Let n be the number that {b} has. Then {a} has {k}n, and n + {k}n = {k + 1}n = {n * (k + 1)}, so n = {n}. {b} has {n} {thing} and {a} has {k * n}.")


def trains():
    u, v, t = R.randrange(60, 140, 5), R.randrange(50, 120, 5), R.randint(2, 5)
    d = (u + v) * t
    return (f"Two trains leave stations {d} km apart at the same time and travel towards each other, one at {u} km/h and the other at {v} km/h. When and where do they meet?\n\n"
            f"The gap closes at {u} + {v} = {u + v} km/h, so they meet after {d} / {u + v} = {t} hours. By then the first has travelled {u} * {t} = {u * t} km and the second {v} * {t} = {v * t} km; {u * t} + {v * t} = {d}, as it should be.")


def euclid():
    g = R.randint(2, 24)
    a, b = g * R.randint(5, 60), g * R.randint(5, 60)
    a, b = max(a, b), min(a, b)
    lines, x, y = [], a, b
    while y:
        lines.append(f"{x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    return f"Find the greatest common divisor of {a} and {b}.\n\nEuclid's algorithm:\n" + "\n".join(lines) + f"\n\nThe last remainder that is not zero is {x}, so gcd({a}, {b}) = {x}, and the least common multiple is {a * b // x}."


def derivative():
    c = [R.randint(-6, 9) for _ in range(4)]
    c[3] = c[3] or 2
    show = lambda cs: " ".join(f"{'-' if v < 0 else '+'} {abs(v) if abs(v) != 1 or i == 0 else ''}{['', 'x', 'x^2', 'x^3'][i]}" for i, v in reversed(list(enumerate(cs))) if v).removeprefix("+ ")
    d = [i * v for i, v in enumerate(c)][1:]
    at = R.randint(-3, 3)
    return (f"Let f(x) = {show(c)}. Find f'(x) and the slope at x = {at}.\n\nTerm by term, the derivative of x^n is n x^(n-1): f'(x) = {show(d)}. "
            f"At x = {at} this is {sum(v * at ** i for i, v in enumerate(d))}.")


def dice():
    n = R.choice([4, 6, 8, 10, 12])
    k = R.randint(3, 2 * n - 2)
    ways = sum(1 for i in range(1, n + 1) for j in range(1, n + 1) if i + j == k)
    return (f"Two fair dice with {n} faces each are thrown. What is the probability that the sum is {k}?\n\nThere are {n} * {n} = {n * n} equally likely outcomes. "
            f"The first die can show anything from {max(1, k - n)} to {min(n, k - 1)}, and each of these fixes the second: {ways} outcomes. The probability is {ways}/{n * n}"
            + (f" = {Fraction(ways, n * n)}" if gcd(ways, n * n) > 1 else "") + f", about {100 * ways / n / n:.1f} %.")


def matrix():
    m = [[R.randint(-4, 6) for _ in range(2)] for _ in range(2)]
    v = [R.randint(-5, 5) for _ in range(2)]
    (a, b), (c, d) = m
    return (f"Multiply the matrix [[{a}, {b}], [{c}, {d}]] by the vector ({v[0]}, {v[1]}), and find the determinant.\n\n"
            f"First component: {a} * {v[0]} + {b} * {v[1]} = {a * v[0] + b * v[1]}. Second: {c} * {v[0]} + {d} * {v[1]} = {c * v[0] + d * v[1]}. "
            f"The determinant is {a} * {d} - {b} * {c} = {a * d - b * c}, so the matrix is {'singular' if a * d == b * c else 'invertible'}.")


def base():
    n, b = R.randint(100, 4000), R.choice([2, 3, 5, 7, 8])
    lines, x, digits = [], n, ""
    while x:
        lines.append(f"{x} / {b} = {x // b} remainder {x % b}")
        digits, x = str(x % b) + digits, x // b
    return f"Write {n} in base {b}.\n\n" + "\n".join(lines) + f"\n\nReading the remainders from the last to the first: {digits}."


def interest():
    p, r, n = R.randrange(500, 9000, 250), R.choice([1.5, 2, 2.5, 3, 4, 5]), R.randint(2, 4)
    lines, x = [], float(p)
    for year in range(1, n + 1):
        lines.append(f"Year {year}: {x:.2f} * {1 + r / 100:g} = {x * (1 + r / 100):.2f}")
        x *= 1 + r / 100
    return f"{R.choice(NAMES)} puts {p} into an account that pays {r} % a year. What is it worth after {n} years?\n\n" + "\n".join(lines) + f"\n\nThe interest is {x - p:.2f} in all."


def triangle():
    k = R.randint(1, 6)
    a, b, c = (k * n for n in R.choice([(3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29)]))
    return (f"A right triangle has legs of {a} cm and {b} cm. Find its hypotenuse, perimeter and area.\n\nBy Pythagoras, c^2 = {a}^2 + {b}^2 = {a * a} + {b * b} = {c * c}, so c = {c} cm. "
            f"The perimeter is {a} + {b} + {c} = {a + b + c} cm and the area is {a} * {b} / 2 = {a * b / 2:g} cm^2.")


def sequence():
    a, d, n = R.randint(-5, 20), R.randint(2, 9), R.randint(10, 40)
    last = a + (n - 1) * d
    return (f"Add up the first {n} terms of the sequence {a}, {a + d}, {a + 2 * d}, {a + 3 * d}, ...\n\nEach term is {d} more than the one before, so the last is {a} + {n - 1} * {d} = {last}. "
            f"Pairing the first with the last gives {a} + {last} = {a + last} again and again; there are {n}/2 pairs, so the sum is {n} * {a + last} / 2 = {n * (a + last) // 2}.")


KINDS = [linear, quadratic, fraction, percent, share, trains, euclid, derivative, dice, matrix, base, interest, triangle, sequence]
SEPARATOR = "\n%%%%\n"
hand = (Path(__file__).parent / "math_by_hand.txt").read_text(encoding="utf-8").strip().split(SEPARATOR)
made = ["\n\n".join(kind() for kind in R.sample(KINDS, 4)) for _ in range(20)]
print(SEPARATOR.join(hand + made))
