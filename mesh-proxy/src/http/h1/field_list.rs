//! The fields of a message (headers or trailers), in the order and case in which they came.

use std::borrow::Cow;
use std::ops::Range;

/// Fields, flat: one buffer for all of their bytes, reused from one message to the next.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    name: Range<usize>,
    value: Range<usize>,
}

impl Fields {
    /// Removes all fields; the memory stays for the next ones.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
    }

    /// Makes room for so many bytes of names and values, and so many fields, and some that are added later.
    pub fn reserve(&mut self, bytes: usize, fields: usize) {
        const ADDED_LATER: (usize, usize) = (96, 4);
        self.bytes.reserve(bytes + ADDED_LATER.0);
        self.places.reserve(fields + ADDED_LATER.1);
    }

    /// Returns the number of bytes that memory is kept for.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Returns the number of bytes of all names and values.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a field behind the others. The name is a token (RFC 9110, 5.1), so it is ASCII.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name.as_bytes());
        let middle = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.places.push(Place { name: start..middle, value: middle..self.bytes.len() });
    }

    /// Iterates over names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.places.iter().map(|place| (self.name(place), &self.bytes[place.value.clone()]))
    }

    /// Iterates over the values of a name, whatever its case.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Whether a name is there, whatever its case.
    pub fn contains(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Removes all fields of a name, whatever its case.
    pub fn remove(&mut self, name: &str) {
        let bytes = &self.bytes;
        self.places.retain(|place| !bytes[place.name.clone()].eq_ignore_ascii_case(name.as_bytes()));
    }

    /// Returns the value of a name, with commas between several; none if it is absent.
    pub fn joined_value(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self.places.iter().filter(|place| self.name(place).eq_ignore_ascii_case(name));
        let text = |place: &Place| String::from_utf8_lossy(&self.bytes[place.value.clone()]);
        let first = text(values.next()?);
        let Some(second) = values.next() else { return Some(first) };
        let mut joined = first.into_owned();
        for place in std::iter::once(second).chain(values) {
            joined.push(',');
            joined.push_str(&text(place));
        }
        Some(Cow::Owned(joined))
    }

    /// Returns the number of fields.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn name(&self, place: &Place) -> &str {
        // Only tokens come in as names.
        std::str::from_utf8(&self.bytes[place.name.clone()]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_case_and_are_found_by_any() {
        let mut fields = Fields::default();
        for (name, value) in [("X-One", "1"), ("two", "2"), ("x-one", "3")] {
            fields.push(name, value.as_bytes());
        }
        assert_eq!(fields.joined_value("x-oNe").as_deref(), Some("1,3"));
        assert_eq!(fields.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["X-One", "two", "x-one"]);
        fields.remove("X-ONE");
        assert_eq!((fields.len(), fields.contains("two"), fields.contains("x-one")), (1, true, false));
        fields.clear();
        assert!(fields.is_empty() && fields.joined_value("two").is_none());
    }
}
