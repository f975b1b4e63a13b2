//! Conditions of a request.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use super::text_match::TextMatch;
use crate::plan::workload::Workload;

/// A request as routes look at it. The path is in its normal form (RFC 3986, 6.2.2), as the server gets it.
pub trait RequestView {
    /// Returns the method.
    fn method(&self) -> &str;
    /// Returns the scheme: `http` or `https`.
    fn scheme(&self) -> &str;
    /// Returns the host that the request names, with its port if it has one.
    fn authority(&self) -> &str;
    /// Returns the path, without the query.
    fn path(&self) -> &str;
    /// Returns the query, without its `?`; none if there is no `?`.
    fn query(&self) -> Option<&str>;
    /// Returns the value of a header, whose name is given in lower case; several values are joined by commas.
    /// None if it is absent.
    fn header(&self, name: &str) -> Option<Cow<'_, str>>;
    /// Whether it is a call of gRPC: its `content-type` is `application/grpc`, or that with something behind
    /// a `+` or `;` (gRPC over HTTP/2).
    fn is_grpc(&self) -> bool {
        let content_type = self.header("content-type");
        let rest = content_type.as_deref().and_then(|value| value.strip_prefix("application/grpc"));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
    }
}

/// Conditions of a request, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// Name, for logs; may be empty.
    pub name: Box<str>,
    /// The path without the query. None: any; so for the rest.
    pub path: Option<TextMatch>,
    /// Whether case is ignored in an exact path or a prefix of one.
    pub ignores_path_case: bool,
    /// The scheme.
    pub scheme: Option<TextMatch>,
    /// The method.
    pub method: Option<TextMatch>,
    /// The authority.
    pub authority: Option<TextMatch>,
    /// Headers.
    pub headers: Box<[HeaderMatch]>,
    /// Parameters of the query, by name.
    pub query: Box<[(Box<str>, TextMatch)]>,
    /// Port that the client connects to.
    pub port: Option<u16>,
    /// Labels that the client must have.
    pub client_labels: BTreeMap<String, String>,
    /// Namespace of the client.
    pub client_namespace: Option<Box<str>>,
    /// Whether it must be a call of gRPC.
    pub is_grpc: bool,
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Name in lower case; or `:method`, `:scheme`, `:authority`, `:path`.
    pub name: Box<str>,
    /// How its value is compared.
    pub value: TextMatch,
    /// Whether the header must not match; an absent one counts as empty.
    pub inverts: bool,
}

/// The first condition of a match that a request does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmetCondition<'a> {
    /// The port that the client connects to.
    Port,
    /// The client's namespace.
    ClientNamespace,
    /// A label of the client, by its name.
    ClientLabel(&'a str),
    /// The method.
    Method,
    /// The path.
    Path,
    /// The scheme.
    Scheme,
    /// The authority.
    Authority,
    /// That it is a call of gRPC.
    Grpc,
    /// A header, by its name.
    Header(&'a str),
    /// A parameter of the query, by its name.
    QueryParameter(&'a str),
}

impl fmt::Display for UnmetCondition<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port => formatter.write_str("port"),
            Self::ClientNamespace => formatter.write_str("sourceNamespace"),
            Self::ClientLabel(name) => write!(formatter, "sourceLabels {name}"),
            Self::Method => formatter.write_str("method"),
            Self::Path => formatter.write_str("uri"),
            Self::Scheme => formatter.write_str("scheme"),
            Self::Authority => formatter.write_str("authority"),
            Self::Grpc => formatter.write_str("content-type of gRPC"),
            Self::Header(name) => write!(formatter, "header {name}"),
            Self::QueryParameter(name) => write!(formatter, "query parameter {name}"),
        }
    }
}

impl HttpMatch {
    /// Returns the first condition that a request of `client` to a port does not meet; none: it fits.
    pub fn unmet_condition(
        &self,
        request: &impl RequestView,
        client: &Workload,
        port: u16,
    ) -> Option<UnmetCondition<'_>> {
        let text = |condition: &Option<TextMatch>, text: &str| {
            condition.as_ref().is_none_or(|condition| condition.fits(text))
        };
        let label = |(key, value): &(&String, &String)| client.labels.get(*key) != Some(value);
        if self.port.is_some_and(|wanted| wanted != port) {
            return Some(UnmetCondition::Port);
        }
        if self.client_namespace.as_ref().is_some_and(|wanted| **wanted != *client.namespace) {
            return Some(UnmetCondition::ClientNamespace);
        }
        if let Some((name, _)) = self.client_labels.iter().find(label) {
            return Some(UnmetCondition::ClientLabel(name));
        }
        for (fits, condition) in [
            (text(&self.method, request.method()), UnmetCondition::Method),
            (self.path_fits(request.path()), UnmetCondition::Path),
            (text(&self.scheme, request.scheme()), UnmetCondition::Scheme),
            (text(&self.authority, request.authority()), UnmetCondition::Authority),
            (!self.is_grpc || request.is_grpc(), UnmetCondition::Grpc),
        ] {
            if !fits {
                return Some(condition);
            }
        }
        if let Some(header) = self.headers.iter().find(|condition| !condition.fits(request)) {
            return Some(UnmetCondition::Header(&header.name));
        }
        let is_unmet = |(name, value): &&(Box<str>, TextMatch)| {
            !query_parameter(request.query(), name).is_some_and(|found| value.fits(&found))
        };
        self.query.iter().find(is_unmet).map(|(name, _)| UnmetCondition::QueryParameter(name))
    }

    fn path_fits(&self, path: &str) -> bool {
        match &self.path {
            None => true,
            Some(condition) if self.ignores_path_case => condition.fits_ignoring_case(path),
            Some(condition) => condition.fits(path),
        }
    }
}

impl HeaderMatch {
    fn fits(&self, request: &impl RequestView) -> bool {
        let value = match &*self.name {
            ":method" => Some(Cow::Borrowed(request.method())),
            ":scheme" => Some(Cow::Borrowed(request.scheme())),
            ":authority" => Some(Cow::Borrowed(request.authority())),
            ":path" => Some(match request.query() {
                None => Cow::Borrowed(request.path()),
                Some(query) => Cow::Owned(format!("{}?{query}", request.path())),
            }),
            name => request.header(name),
        };
        match (&self.value, self.inverts) {
            (TextMatch::Present, inverts) => value.is_some() != inverts,
            (condition, false) => value.is_some_and(|value| condition.fits(&value)),
            (condition, true) => !condition.fits(value.as_deref().unwrap_or_default()),
        }
    }
}

/// Returns the first value of a parameter of the query, both percent-decoded; none if it is absent.
pub fn query_parameter<'a>(query: Option<&'a str>, name: &str) -> Option<Cow<'a, str>> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(key) == name).then(|| percent_decoded(value))
    })
}

/// Replaces `%XX` by the byte that it stands for; what is no such triple stays.
fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let is_hex = |digits: &&str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let byte = digits.filter(is_hex).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(byte) = byte.filter(|_| *first == b'%') {
            decoded.push(byte);
            rest = &behind[2..];
        } else {
            decoded.push(*first);
            rest = behind;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_a_parameter_counts_and_both_sides_are_decoded() {
        let query = Some("a=1&a=2&b&%63=%41%zz%4");
        let value = |name: &str| query_parameter(query, name);
        assert_eq!(value("a").as_deref(), Some("1"));
        assert_eq!(value("b").as_deref(), Some(""));
        assert_eq!(value("c").as_deref(), Some("A%zz%4"));
        assert_eq!((value("d"), query_parameter(None, "a")), (None, None));
    }
}
