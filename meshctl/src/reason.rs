//! Errors in as many words as they need. A Kubernetes client's own text repeats each layer below it, and the
//! whole answer.

use std::error::Error;

/// An error and its causes on one line, each once.
pub fn reason(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let (text, is_last) = match cause.downcast_ref::<kube::Error>() {
            Some(error) => (of_client(error), true),
            None => (cause.to_string(), false),
        };
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        if is_last {
            break;
        }
    }
    parts.join(": ")
}

/// What a Kubernetes client met: the API server's own words, or the last cause of why there are none.
pub fn of_client(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let words = [&status.message, &status.reason].into_iter().find(|words| !words.is_empty());
        return words.cloned().unwrap_or_else(|| format!("status {}", status.code));
    }
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use kube::core::Status;

    #[test]
    fn the_api_servers_words_are_said_once() {
        let message = "pods is forbidden: you may not".to_owned();
        let status = Status { message, reason: "Forbidden".to_owned(), code: 403, ..Status::default() };
        let answer: Result<(), kube::Error> = Err(kube::Error::Api(Box::new(status)));
        let error = answer.context("can't list the pods").unwrap_err();
        assert_eq!(reason(&error), "can't list the pods: pods is forbidden: you may not");
    }

    #[test]
    fn a_cause_that_its_effect_quotes_is_left_out() {
        let missing = std::io::Error::other("no such file");
        let error = anyhow::Error::new(missing).context("can't read 'x': no such file").context("no config");
        assert_eq!(reason(&error), "no config: can't read 'x': no such file");
    }
}
