//! Routes and matches that nothing reaches, since an earlier route takes all of it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::StringMatch;
use crate::document::cursor::Cursor;

/// What a match asks for: paths, and `K` for all else.
#[derive(Default)]
pub(super) struct Conditions<K> {
    /// Text that begins with that of every match which has all of these paths.
    paths: String,
    others: K,
}

impl<K> Conditions<K> {
    /// Those of a match for these paths; `None`: all.
    pub fn new(paths: Option<&StringMatch>, others: K) -> Self {
        // A path has no NUL, and begins with a slash.
        let paths = match paths {
            None => String::new(),
            Some(StringMatch::Regex(regex)) if regex == ".*" => String::new(),
            Some(StringMatch::Prefix(prefix)) => prefix.clone(),
            Some(StringMatch::Exact(path)) => format!("{path}\0"),
            Some(StringMatch::Regex(regex)) => format!("/\0\0{regex}\0"),
        };
        Self { paths, others }
    }
}

/// What the routes of a list have taken so far.
pub(super) struct EarlierRoutes<K> {
    list: &'static str,
    /// How many they are.
    count: usize,
    /// By what else they ask for, the paths, of which none begins with another, with the routes' indices.
    taken: HashMap<K, BTreeMap<String, usize>>,
}

impl<K: Clone + Default + Eq + Hash> EarlierRoutes<K> {
    /// Before the first route of the field `list`.
    pub fn new(list: &'static str) -> Self {
        Self { list, count: 0, taken: HashMap::new() }
    }

    /// Takes in the next route, which is at `at`. Warns if nothing reaches it, or one of its matches.
    /// `takes_all`: later routes get nothing of what it matches.
    pub fn add(&mut self, at: &Cursor<'_>, matches: impl Iterator<Item = Conditions<K>>, takes_all: bool) {
        let mut matches: Vec<_> = matches.collect();
        if matches.is_empty() {
            matches.push(Conditions::default());
        }
        let (total, mut dead) = (matches.len(), Vec::new());
        for (index, conditions) in matches.into_iter().enumerate() {
            match self.taken_by(&conditions) {
                Some(route) => dead.push((index, route)),
                None if takes_all => self.take(conditions),
                None => {}
            }
        }
        self.count += 1;
        let problem = |route: usize| format!("nothing reaches it: `{}[{route}]` takes all of it", self.list);
        match dead.as_slice() {
            [(_, route), ..] if dead.len() == total => {
                at.warn(problem(*route), "move it before that route, or remove it");
            }
            _ => warn_of_matches(at, &dead, problem),
        }
    }

    fn taken_by(&self, wanted: &Conditions<K>) -> Option<usize> {
        [&wanted.others, &K::default()].into_iter().find_map(|others| {
            // If one begins with another, there is nothing between them but what begins with it, too.
            let (paths, route) = self.taken.get(others)?.range::<String, _>(..=&wanted.paths).next_back()?;
            wanted.paths.starts_with(paths.as_str()).then_some(*route)
        })
    }

    fn take(&mut self, new: Conditions<K>) {
        let taken = self.taken.entry(new.others).or_default();
        while let Some((longer, _)) = taken.range::<String, _>(&new.paths..).next() {
            if !longer.starts_with(&new.paths) {
                break;
            }
            let longer = longer.clone();
            taken.remove(&longer);
        }
        taken.insert(new.paths, self.count);
    }
}

fn warn_of_matches(at: &Cursor<'_>, dead: &[(usize, usize)], problem: impl Fn(usize) -> String) {
    let Some(list) = at.fields_with_any_key().get("match").filter(|_| !dead.is_empty()) else { return };
    let matches = list.items();
    for (index, route) in dead {
        if let Some(at) = matches.get(*index) {
            at.warn(problem(*route), "remove it, or move it before that route");
        }
    }
}
