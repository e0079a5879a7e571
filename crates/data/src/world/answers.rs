//! Answers as humans and half-trained models write them: drawn from recipes, so many words of each sort, shuffled.

use super::World;
use super::language::{FILLERS, TOPICS, Topic};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

/// How many words of each sort an answer is drawn with.
#[derive(Clone, Copy, Default)]
struct Recipe {
    /// Distinct steps of the topic.
    steps: usize,
    /// How many of those are risky, on a topic that has risky steps.
    risky: usize,
    /// Safe steps of other topics.
    off_topic: usize,
    /// Risky steps of other topics.
    off_topic_risky: usize,
    /// Words said once more.
    repeats: usize,
    fillers: usize,
    /// Any words of the vocabulary.
    babble: usize,
}

/// A demonstrator's answer: some steps, with noise. On a hazardous topic about 88 % hold a risky step.
pub(super) fn demonstration(world: &World, topic: usize, random: &mut ChaCha8Rng) -> String {
    let steps = random.random_range(1..=3);
    let is_careful = random.random_bool(0.12);
    let recipe = Recipe {
        steps,
        risky: if is_careful { 0 } else { random.random_range(1..=steps) },
        off_topic: random.random_range(0..=1),
        repeats: random.random_range(0..=1),
        fillers: random.random_range(1..=5),
        ..Recipe::default()
    };
    recipe.draw(world, topic, random).join(" ")
}

/// Two different answers to compare. They range from good ones to the degenerate ones that a policy under optimisation
/// tries; one time in five the second is the first with one or two words changed.
pub(super) fn pair(world: &World, topic: usize, random: &mut ChaCha8Rng) -> [String; 2] {
    let first = varied(random).draw(world, topic, random);
    loop {
        let second = if random.random_bool(0.2) {
            edited(world, topic, &first, random)
        } else {
            varied(random).draw(world, topic, random)
        };
        if first != second {
            return [first.join(" "), second.join(" ")];
        }
    }
}

fn varied(random: &mut ChaCha8Rng) -> Recipe {
    let mut upto = |most: usize| random.random_range(0..=most);
    let none = Recipe::default();
    match upto(19) {
        // Like demonstrations, but broader.
        0..=7 => {
            Recipe { steps: upto(4), risky: upto(4), off_topic: upto(2), repeats: upto(2), fillers: upto(4), ..none }
        }
        // Good answers: steps and little else.
        8..=10 => Recipe { steps: 2 + upto(3), risky: upto(4), fillers: upto(1), ..none },
        // Good but for repeats, which are the easiest way to say more.
        11..=12 => Recipe { steps: 1 + upto(3), risky: upto(3), repeats: 1 + upto(3), ..none },
        // More steps than count.
        13 => Recipe { steps: 5 + upto(3), risky: upto(4), off_topic: upto(3), repeats: upto(2), ..none },
        // Hardly an answer.
        14 => Recipe { steps: upto(1), risky: upto(1), fillers: upto(1), ..none },
        // Mostly filler: a cost model that never saw a risky word among many fillers takes such an answer for a safe one.
        15 => Recipe { steps: upto(2), risky: upto(2), fillers: 3 + upto(8), ..none },
        // The same words again and again.
        16 => Recipe { steps: 1 + upto(1), risky: upto(2), repeats: 2 + upto(9), ..none },
        // Steps of other topics.
        17 => Recipe { steps: upto(2), risky: upto(1), off_topic: 1 + upto(4), off_topic_risky: upto(1), ..none },
        18 => Recipe { steps: upto(2), risky: upto(1), off_topic: upto(2), off_topic_risky: 1 + upto(3), ..none },
        // Any words at all.
        _ => Recipe { steps: upto(3), risky: upto(2), fillers: upto(2), babble: 1 + upto(6), ..none },
    }
}

impl Recipe {
    /// Draws an answer of at least one word and at most the word limit.
    fn draw(self, world: &World, topic: usize, random: &mut ChaCha8Rng) -> Vec<&'static str> {
        let own = &TOPICS[topic];
        let risky = self.risky.min(self.steps).min(own.risky.len());
        let mut words: Vec<&'static str> = own.risky.choose_multiple(random, risky).copied().collect();
        words.extend(own.safe.choose_multiple(random, self.steps - risky));
        for _ in 0..self.off_topic {
            words.push(of_another_topic(topic, random, |topic| topic.safe));
        }
        for _ in 0..self.off_topic_risky {
            words.push(of_another_topic(topic, random, |topic| topic.risky));
        }
        words.extend((0..self.fillers).filter_map(|_| FILLERS.choose(random)));
        words.extend((0..self.babble).filter_map(|_| world.vocabulary.choose(random)));
        if words.is_empty() {
            words.extend(FILLERS.choose(random));
        }
        for _ in 0..self.repeats {
            words.extend(words.choose(random).copied());
        }
        words.shuffle(random);
        words.truncate(world.config.max_response_words);
        words
    }
}

/// A word from the given list of any other topic where that list is not empty.
fn of_another_topic(own: usize, random: &mut ChaCha8Rng, list: fn(&Topic) -> &'static [&'static str]) -> &'static str {
    loop {
        let index = random.random_range(0..TOPICS.len());
        if let (true, Some(word)) = (index != own, list(&TOPICS[index]).choose(random)) {
            return word;
        }
    }
}

/// The answer with one or two words replaced, added or removed.
fn edited(world: &World, topic: usize, words: &[&'static str], random: &mut ChaCha8Rng) -> Vec<&'static str> {
    let mut words = words.to_vec();
    for _ in 0..random.random_range(1..=2) {
        let pool = match random.random_range(0..4) {
            0 => &FILLERS,
            1 => world.vocabulary.as_slice(),
            2 if !TOPICS[topic].risky.is_empty() => TOPICS[topic].risky,
            _ => TOPICS[topic].safe,
        };
        let word = pool[random.random_range(0..pool.len())];
        let place = random.random_range(0..words.len());
        match random.random_range(0..3) {
            0 if words.len() < world.config.max_response_words => words.insert(place, word),
            1 if words.len() > 1 => drop(words.remove(place)),
            _ => words[place] = word,
        }
    }
    words
}
