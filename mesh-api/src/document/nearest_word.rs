//! "Did you mean": the nearest of the words that would have been right.

/// The candidate that `word` was most likely meant to be, if any is near enough to be worth naming.
pub(crate) fn nearest_word<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_lowercase();
    let (length, limit) = (folded.chars().count(), (word.chars().count() / 3).clamp(1, 3));
    candidates
        .into_iter()
        .map(|candidate| (candidate.to_lowercase(), candidate))
        // Each letter that one has more than the other counts, and the words of a document may be very long.
        .filter(|(lower, _)| lower.chars().count().abs_diff(length) <= limit)
        .map(|(lower, candidate)| (distance(&folded, &lower), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let words = ["principals", "notPrincipals", "namespaces"];
        assert_eq!(nearest_word("notPrincipal", words), Some("notPrincipals"));
        assert_eq!(nearest_word("pricnipals", words), Some("principals"));
        assert_eq!(nearest_word("Namespaces", words), Some("namespaces"));
        assert_eq!(nearest_word("ports", words), None);
    }

    #[test]
    fn words_of_other_lengths_are_not_compared() {
        let (long, longer) = ("a".repeat(200_000), "a".repeat(200_100));
        let start = std::time::Instant::now();
        assert_eq!(nearest_word(&long, [longer.as_str()]), None);
        assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
    }

    #[test]
    fn distance_counts_a_swap_once() {
        assert_eq!(distance("strcit", "strict"), 1);
        assert_eq!(distance("", "abc"), 3);
    }
}
