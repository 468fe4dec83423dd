"""What people ask of chat models, and about how long answers are: rules of thumb for every ranker.

A ranker knows what its own prompts taught it. From traffic of another kind it would know nothing. So every
ranker also learns from these patterns, at a lower weight. They and their lengths, in tokens, were written by
hand from experience, before any ranker was measured with them. They are no one's data.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from slosched.predictors.answers import Answers

PATTERNS: dict[str, int] = {
    # Facts and single words.
    "Answer yes or no: does {t} need much water?": 3, "In one word, what is {t} about?": 3,
    "Is this review positive or negative? {p} Answer with one word.": 3,
    "Reply with only the number: how many letters has {t}?": 4, "What is the capital of {c}?": 10,
    "Give me a synonym for {t}.": 8, "How do you spell {t}?": 10, "What year was {t} invented?": 18,
    "Who invented {t}?": 35, "What is {n} * {n}?": 18, "convert {n} miles to kilometers": 25,
    "Translate '{t}' into French.": 15, "Fix the spelling: {t} ar grate": 15,
    "Give me a title for a talk on {t}": 20,
    "Which is older, {t} or {t}?": 40, "When did {t} become popular?": 60,
    "Is it true that {t} is dangerous?": 120,
    "Define {t}.": 60, "What does {t} mean?": 80, "What does the acronym {t} stand for?": 30,
    "Where does {t} come from?": 110, "how old is {t}": 40, "How much does {t} cost?": 120,
    # Short on demand.
    "Summarize in one sentence: {p}": 40, "Explain {t} in one sentence.": 40, "Describe {t} briefly.": 80,
    "Explain {t} in two or three sentences.": 80, "Keep it short: why does {t} matter?": 60,
    "Write a haiku about {t}.": 28, "Write a tweet about {t}.": 50, "Write a slogan for {t}.": 18,
    "Tell me a joke about {t}.": 40, "Write a limerick about {t}": 65,
    "Write a caption for a photo of {t}": 35,
    "Extract all names from this text: {p}": 25, "give me one example of {t}": 70,
    "Explain {t} in under {n} words.": 70, "Rephrase this sentence: {t} is what I like best.": 25,
    # Explanations.
    "What is {t}?": 160, "Who was the founder of {t}?": 130, "what's {t}": 140, "Why is {t} important?": 260,
    "Why do people like {t}?": 240, "How does {t} work?": 310, "Explain {t}.": 300, "explain {t} to me": 300,
    "Explain {t} like I'm five.": 180, "Explain {t} in simple terms.": 200, "Explain {t} in detail.": 560,
    "Describe the history of {t} in depth, with examples.": 700, "Tell me about {t}.": 260,
    "What is the difference between {t} and {t}?": 290, "Compare {t} and {t}.": 380,
    "What are the pros and cons of {t}?": 390, "What are the benefits of {t}?": 320,
    "What are the main causes of {t}?": 330, "Discuss the impact of {t} on society.": 520,
    "Analyze the role of {t} in modern life.": 540, "How has {t} changed over time?": 400,
    # Lists and advice.
    "List three kinds of {t}.": 70, "List {m} facts about {t}.": 330, "Give me {m} ideas for {t}.": 360,
    "Give me 50 ideas for {t}": 950, "What are some {t} trends?": 320, "Brainstorm names for {t}.": 180,
    "Give me tips for {t}.": 350, "How can I get better at {t}?": 380, "What should I know about {t}?": 380,
    "Should I learn {t} or {t}?": 280, "Recommend books on {t}.": 300,
    "What are the best ways to use {t}?": 390,
    "How do I start with {t}?": 380, "I have a problem with {t}. What can I do?": 330,
    "Suggest {m} questions to ask about {t}": 280, "Create a table that compares {t} and {t}": 320,
    "Give me {m} keywords for {t}": 120,
    # Writing.
    "Write a poem about {t}.": 230, "Write a short poem about {t}.": 120, "Write a song about {t}.": 330,
    "Write a paragraph about {t}.": 150, "Write a short story about {t}.": 580,
    "Write a story about {t}": 720,
    "Write a detailed story about {t} with dialogue": 950, "Write an essay about {t}.": 780,
    "Write a five paragraph essay on {t}.": 720, "Write a 500 word essay on {t}": 680,
    "Write a 1000 word article on {t}": 1150, "Write a 2000 word article on {t}": 1800,
    "Write a blog post about {t}.": 760, "write an article about {t} with headings": 820,
    "Write an email to my boss about {t}.": 190, "Write a cover letter for a job in {t}.": 390,
    "Write a product description for {t}.": 190, "Write a press release about {t}": 480,
    "Write a speech about {t}.": 600, "Write a script for a video about {t}.": 680,
    "Write a dialogue between two people about {t}.": 430, "Write a LinkedIn post about {t}": 220,
    "Write a review of {t}": 330, "Write a chapter about {t}.": 1100,
    "Write a letter of complaint about {t}": 300,
    "Continue this story: {p}": 500, "write a report on {t}": 850,
    "Write a product requirements document for {t}": 900,
    # Plans.
    "Write a business plan for {t}.": 950, "Create a marketing plan for {t}.": 820,
    "Create a lesson plan about {t}.": 720, "Plan a {m} day trip for someone who likes {t}.": 750,
    "Make a 7 day meal plan with {t}": 750, "Give me a recipe with {t}.": 400,
    "Create a study plan for {t}": 620,
    "Write an outline for a book about {t}.": 480, "Write a step by step guide to {t}.": 640,
    "Write a tutorial on {t} with examples.": 850, "Do a SWOT analysis of {t}": 520,
    "Make a quiz with {m} questions and answers about {t}.": 480, "Write a job description for {t}": 430,
    "Create a course curriculum on {t}, week by week": 900, "Write a FAQ about {t}": 560,
    # Texts to change.
    "Rewrite this paragraph: {p}": 95, "Proofread: {p}": 90, "Translate into Spanish: {p}": 100,
    "Summarize: {p}": 70, "Make this more formal: {p}": 95, "Shorten this: {p}": 50,
    "improve this text {p}": 100,
    "Turn this into bullet points: {p}": 100, "Expand this into a full article: {p}": 750,
    "What is the main idea? {p}": 60,
    # Code and sums.
    "Write a Python function that sorts {t}.": 260, "Write a regex that finds {t}.": 130,
    "Write a SQL query that counts {t}.": 140, "Write a C++ program about {t}.": 480,
    "Write unit tests for this code: {k}": 430, "Fix the bug in this code: {k}": 260,
    "Explain this code: {k}": 300,
    "Refactor this code: {k}": 330, "What does this code print? {k}": 110, "what does this return {k}": 90,
    "Build a web page in HTML and CSS about {t}": 650, "Build a complete React app for {t}": 1050,
    "Write a snake game in JavaScript": 900, "How do I read a file in Python?": 260,
    "how to install {t} on ubuntu": 300, "Write a bash command that lists {t}": 80,
    "add comments to this code {k}": 260,
    "I get this error: {k} TypeError: unsupported operand. What is wrong?": 250,
    "Anna has {n} apples and buys {n} more. How many has she?": 70,
    "A train goes {n} km in {n} hours. Solve step by step.": 230, "Solve for x: {n}x + {n} = {n}": 150,
    "Prove that the sum of {t} is even.": 430, "Derive the formula for {t}, step by step.": 560,
    "Calculate the area of a circle of radius {n}": 120,
    # Roles and talk.
    "Act as a teacher. My first question is about {t}.": 320,
    "I want you to act as a Linux terminal. Only reply with the output. My first command is pwd": 12,
    "I want you to act as an interviewer for {t}. Only ask the first question.": 45,
    "You are an expert in {t}. Give me a detailed strategy.": 720,
    "Pretend you are {t} and introduce yourself.": 220,
    "hi": 20, "hello": 20, "thanks": 25, "ok": 30, "yes": 130, "continue": 460, "go on": 420, "more": 330,
    "tell me more": 300, "Are you sure?": 90, "Can you elaborate?": 320, "shorter please": 100,
    "make it longer": 520, "give an example": 230, "Can you help me with {t}?": 130, "Do you know {t}?": 110,
    "I will send you text about {t}. Just say OK.": 8, "Write it again, but in the style of {t}": 380,
    "what do you think about {t}": 220, "Now do the same for {t}": 300, "rewrite it": 250,
}  # fmt: skip
"""A prompt with places for what it is about, and the tokens of a usual answer."""


PLACES: dict[str, tuple[str, ...]] = {
    "t": (
        "solar power", "jazz", "the stock market", "gardening", "machine learning", "online shops", "chess",
        "the French Revolution", "coffee", "climate change", "yoga", "electric cars", "photosynthesis",
        "remote work", "black holes", "sleep", "basketball", "databases", "immigration", "a small bakery",
        "mental health", "blockchain", "dogs", "the human heart", "cloud storage", "project management",
        "Shakespeare", "vaccines", "video games", "investing", "plastic waste", "time travel", "leadership",
        "mountains", "customer service", "a lost robot", "public transport", "digital marketing",
        "inflation", "quantum computers", "the ocean", "job interviews", "a dragon", "recycling",
        "football", "cyber security", "wine", "architecture", "a new phone", "memory",
    ),
    "c": ("France", "Kenya", "Peru", "Japan", "Norway", "Egypt"),
    "n": ("3", "12", "45", "7", "150", "28"),
    "m": ("5", "8", "10", "12", "15"),
    "k": (
        "def total(values): s = 0; for v in values: s += v; return s",
        "for (let i = 0; i < items.length; i++) { console.log(items[i].name); }",
        "SELECT name, COUNT(*) FROM orders GROUP BY name;",
        "public int add(int a, int b) { return a - b; }",
    ),
    "p": (
        "We stayed three nights. The room was clean and the staff were kind, but breakfast was cold and the "
        "lift was broken for most of our stay, so we carried our bags up five floors.",
        "The town council met on Monday to talk about the new bridge. Most members agreed that it is "
        "needed; how to pay for it was left open until the next meeting in May.",
        "Our team shipped the first version last week. Users like the search, yet many ask for an export "
        "and for a way to share lists with others.",
        "Bees visit thousands of flowers a day. They carry pollen from one to the next, and without them "
        "many fruits would not grow at all.",
    ),
}  # fmt: skip

OPENINGS = ("", "", "", "Please ", "Can you ", "Could you please ", "I need you to ")
"""In front of what begins with a verb."""

QUESTIONS = (
    "what", "who", "why", "how", "is ", "in ", "which", "when", "where", "should", "you ", "can ",
    "do you", "a ",
    "anna", "i ", "keep it", "act as", "now ", "answer yes",
)  # fmt: skip
"""Beginnings that no opening goes before."""

EACH = 3
"""Prompts made of each pattern that has a place: 10 tell no more."""


@lru_cache(maxsize=1)
def rules_of_thumb() -> Answers:
    """The patterns filled in at random, the same each time, with their lengths.

    Examples
    --------
    >>> rules = rules_of_thumb()
    >>> {p.text: int(n) for p, n in zip(rules.prompts, rules.output_tokens)}["hello"]
    20
    """
    rng = np.random.default_rng(0)
    texts: dict[str, int] = {}
    for pattern, tokens in PATTERNS.items():
        for _ in range(EACH if "{" in pattern else 1):
            text = re.sub(r"{([a-z])}", lambda place: str(rng.choice(PLACES[place[1]])), pattern)
            opening = OPENINGS[int(rng.integers(len(OPENINGS)))]
            if opening and "{" in pattern and not pattern.lower().startswith(QUESTIONS):
                text = opening + text[0].lower() + text[1:]
            texts.setdefault(text, tokens)
    return Answers.single(list(texts), np.array(list(texts.values())))
