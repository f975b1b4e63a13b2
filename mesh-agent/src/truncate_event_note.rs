//! The note of a Kubernetes event, which has a greatest length.

/// Most bytes of an event's note; the API server refuses more than 1 KiB.
const LONGEST_NOTE: usize = 1000;

/// Cuts a text to the length that the API server takes.
pub fn truncate_event_note(text: &str) -> String {
    let mut end = LONGEST_NOTE.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_by_its_bytes_and_between_letters() {
        assert_eq!(truncate_event_note("short"), "short");
        assert_eq!(truncate_event_note(&"a".repeat(2000)).len(), LONGEST_NOTE);
        let cut = truncate_event_note(&"\u{20ac}".repeat(2000));
        assert_eq!((cut.len(), cut.chars().count()), (999, 333), "three bytes each");
    }
}
