//! What a plain YAML scalar means (YAML 1.2 core schema, section 10.3.2).

use serde_json::Number;

use super::yaml_tree::Value;

/// Gives an unquoted scalar its type.
pub(super) fn parse_plain_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok().map(Number::from);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return u64::from_str_radix(digits, 8).ok().map(Number::from);
    }
    if !text.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E')) {
        return None;
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    unsigned
        .parse::<i64>()
        .map(Number::from)
        .ok()
        .or_else(|| unsigned.parse::<u64>().map(Number::from).ok())
        .or_else(|| unsigned.parse().ok().and_then(Number::from_f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_schema() {
        for (text, json) in [
            ("80", "80"),
            ("-1", "-1"),
            ("0x1F", "31"),
            ("0o17", "15"),
            ("1.5", "1.5"),
            ("1e3", "1000.0"),
            ("true", "true"),
            ("~", "null"),
            ("1.2.3", "\"1.2.3\""),
            ("yes", "\"yes\""),
            ("10.0.0.0/8", "\"10.0.0.0/8\""),
            ("-", "\"-\""),
        ] {
            assert_eq!(parse_plain_scalar(text).to_json().to_string(), json, "{text}");
        }
    }
}
