//! Routes and matches that nothing reaches, since an earlier one takes all of it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::StringMatch;
use crate::document::cursor::Cursor;

/// What a match asks for: paths, and `K` for all else.
#[derive(Default)]
pub(super) struct Conditions<K> {
    /// Text that begins with that of every match which has all of these paths.
    paths: String,
    /// Whether upper and lower case of the paths are alike. Not if they have no letters.
    ignores_case: bool,
    others: K,
}

impl<K> Conditions<K> {
    /// Those of a match for these paths; `None`: all. Of regular expressions `ignores_case` means nothing.
    pub fn new(paths: Option<&StringMatch>, ignores_case: bool, others: K) -> Self {
        let is_regex = matches!(paths, Some(StringMatch::Regex(_)));
        // A path has no NUL, and begins with a slash.
        let paths = match paths {
            None => String::new(),
            Some(StringMatch::Regex(regex)) if regex == ".*" => String::new(),
            Some(StringMatch::Prefix(prefix)) => prefix.clone(),
            Some(StringMatch::Exact(path)) => format!("{path}\0"),
            Some(StringMatch::Regex(regex)) => format!("/\0\0{regex}\0"),
        };
        Self { ignores_case: ignores_case && !is_regex && has_letters(&paths), paths, others }
    }
}

fn has_letters(paths: &str) -> bool {
    paths.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// What the routes of a list have taken so far.
pub(super) struct EarlierRoutes<K> {
    list: &'static str,
    /// How many they are.
    count: usize,
    /// By what else they ask for, the paths, with the routes' indices.
    taken: HashMap<(bool, K), Paths>,
}

/// Paths that are taken, of which none begins with another. Those of matches that ignore case are kept apart,
/// in lower case.
type Paths = BTreeMap<String, usize>;

impl<K: Copy + Default + Eq + Hash> EarlierRoutes<K> {
    /// Before the first route of the field `list`.
    pub fn new(list: &'static str) -> Self {
        Self { list, count: 0, taken: HashMap::new() }
    }

    /// Takes in the next route, which is at `at`. Warns if nothing reaches it, or one of its matches.
    /// `takes_all`: later routes get nothing of what it matches.
    pub fn add(&mut self, at: &Cursor<'_>, matches: impl Iterator<Item = Conditions<K>>, takes_all: bool) {
        let mut matches = matches.peekable();
        let all = matches.peek().is_none().then(Conditions::default);
        let (mut total, mut dead) = (0, Vec::new());
        for conditions in matches.chain(all) {
            match self.taken_by(&conditions) {
                Some(route) => dead.push((total, route)),
                None if takes_all => self.take(conditions),
                None => {}
            }
            total += 1;
        }
        match dead.as_slice() {
            [(_, route), ..] if dead.len() == total => {
                at.warn(self.problem(*route), "move it before that route, or remove it");
            }
            _ => self.warn_of_matches(at, &dead),
        }
        self.count += 1;
    }

    fn taken_by(&self, wanted: &Conditions<K>) -> Option<usize> {
        let lower = wanted.paths.to_ascii_lowercase();
        let places = [wanted.others, K::default()].map(|others| [(false, others), (true, others)]);
        places.into_iter().flatten().find_map(|place| {
            let (ignores_case, _) = place;
            let paths = if ignores_case { &lower } else { &wanted.paths };
            let (begin, route) = beginning(self.taken.get(&place)?, paths)?;
            // Of what is wanted in any case, it takes only what is in the same.
            let leaves_some = wanted.ignores_case && !ignores_case && has_letters(begin);
            (!leaves_some).then_some(route)
        })
    }

    fn take(&mut self, new: Conditions<K>) {
        let taken = self.taken.entry((new.ignores_case, new.others)).or_default();
        let paths = if new.ignores_case { new.paths.to_ascii_lowercase() } else { new.paths };
        while let Some((longer, _)) = taken.range::<String, _>(&paths..).next() {
            if !longer.starts_with(&paths) {
                break;
            }
            let longer = longer.clone();
            taken.remove(&longer);
        }
        taken.insert(paths, self.count);
    }

    fn problem(&self, route: usize) -> String {
        format!("nothing reaches it: `{}[{route}]` takes all of it", self.list)
    }

    fn warn_of_matches(&self, at: &Cursor<'_>, dead: &[(usize, usize)]) {
        if dead.is_empty() {
            return;
        }
        let Some(list) = at.fields_with_any_key().get("match") else { return };
        let matches = list.items();
        for (index, route) in dead {
            let Some(at) = matches.get(*index) else { continue };
            if *route == self.count {
                at.warn("nothing reaches it: an earlier match of this route has all of it", "remove it");
            } else {
                at.warn(self.problem(*route), "remove it, or move it before that route");
            }
        }
    }
}

/// Which of `taken` a text begins with, and its route.
fn beginning<'a>(taken: &'a Paths, text: &String) -> Option<(&'a str, usize)> {
    // If one begins with another, there is nothing between them but what begins with it, too.
    let (begin, route) = taken.range::<String, _>(..=text).next_back()?;
    text.starts_with(begin.as_str()).then_some((begin.as_str(), *route))
}
