//! The note of a Kubernetes event, which has a greatest length.

/// Most bytes of an event's note; the API server refuses more than 1 KiB.
const LONGEST_NOTE: usize = 1000;

/// Cuts a text to the length that the API server takes.
pub fn truncate_event_note(text: &str) -> String {
    text.chars().take(LONGEST_NOTE).collect()
}
