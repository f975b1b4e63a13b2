//! Cutting a text into documents before any of it is parsed, so that a syntax error costs one document only.

/// One document of a file.
pub(crate) struct YamlDocument<'a> {
    /// Line of the file at which `text` begins, from 1.
    pub first_line: u32,
    pub text: &'a str,
}

/// Splits at lines that begin with `---`: YAML gives them no other meaning, in any scalar style. What has
/// only comments and directives (`%YAML`) is no document.
pub(crate) fn split_documents(text: &str) -> Vec<YamlDocument<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut first_line) = (0, 1);
    let mut offset = 0;
    for (line, number) in text.split_inclusive('\n').zip(1u32..) {
        if is_separator(line) {
            documents.push(YamlDocument { first_line, text: &text[start..offset] });
            // What follows the dashes on their line belongs to the new document.
            (start, first_line) = (offset + "---".len(), number);
        }
        offset += line.len();
    }
    documents.push(YamlDocument { first_line, text: &text[start..] });
    documents.retain(|document| !document.text.lines().all(is_outside_content));
    documents
}

fn is_outside_content(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with(['#', '%'])
}

fn is_separator(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_their_lines() {
        let documents = split_documents("a: 1\n---\nb: 2\n--- # note\nc: 3\n---x\n");
        let lines: Vec<_> = documents.iter().map(|d| (d.first_line, d.text)).collect();
        assert_eq!(lines, [(1, "a: 1\n"), (2, "\nb: 2\n"), (4, " # note\nc: 3\n---x\n")]);
    }

    #[test]
    fn directives_and_comments_alone_are_no_document() {
        let documents = split_documents("%YAML 1.2\r\n# note\r\n---\r\na: 1\r\n---\r\n");
        let lines: Vec<_> = documents.iter().map(|d| (d.first_line, d.text)).collect();
        assert_eq!(lines, [(3, "\r\na: 1\r\n")]);
    }
}
