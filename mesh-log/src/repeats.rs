//! What a peer can cause at will is one line for each peer, pod, port and second; the rest is counted.
//!
//! The table is bounded, whatever peers choose: their addresses, ports, words. Of one network there are
//! [`SHARE`] entries; beyond them its lines are counted together, and when the table is full all lines of a
//! place are.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::line::Line;

/// Between two lines of the same source.
const PERIOD: Duration = Duration::from_secs(1);

/// Entries of all networks together. An entry holds at most one line.
const MOST: usize = 512;

/// Entries of one network. More than the denied clients of a pod that is not hostile have.
const SHARE: u32 = 16;

/// What lines have in common that are told once in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where in the program, by whom, and all else that tells them apart; then the first two, and the first
    /// alone.
    exact: u64,
    of_network: u64,
    of_place: u64,
    network: u64,
}

impl Source {
    /// Lines of `place` in the program that `peer` causes, an address with or without a port, and that are
    /// the same in `what`. `place` must be one of a few: nothing that a peer chooses.
    pub fn new(place: impl Hash, peer: &str, what: impl Hash) -> Self {
        // Keyed at random, or a peer could choose what is taken for another's.
        static KEYS: OnceLock<RandomState> = OnceLock::new();
        let keys = KEYS.get_or_init(RandomState::new);
        let (address, network) = address(peer);
        let place = keys.hash_one(place);
        let network = keys.hash_one(network);
        let of_network = keys.hash_one((place, network));
        Self { exact: keys.hash_one((of_network, address, what)), of_network, of_place: place, network }
    }
}

/// The address, and whose it is: a host, of IPv6 a /64 (RFC 4291 2.5.4), within which anybody has any.
fn address(peer: &str) -> (&str, Result<IpAddr, &str>) {
    let (ip, text) = match peer.parse::<SocketAddr>() {
        // Its port is another one for each connection.
        Ok(address) => (Some(address.ip()), peer.rsplit_once(':').map_or(peer, |(ip, _)| ip)),
        Err(_) => (peer.parse().ok(), peer),
    };
    let network = ip.map(|ip| match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip @ IpAddr::V4(_) => ip,
    });
    (text, network.ok_or(peer))
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is written.
    Written,
    /// It is the first one to be counted: it is kept until it is due, and says for how many it stands.
    Kept(Ticket),
    /// It is counted, and nobody needs to see it.
    Counted,
}

/// Where a line is kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// The sources that had a line lately.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    entries: HashMap<u64, Entry>,
    shares: HashMap<u64, u32>,
}

#[derive(Debug)]
struct Entry {
    /// The network that it counts for.
    network: u64,
    /// When it had its last line.
    since: Instant,
    /// How many came since then.
    count: u64,
    /// The first of them.
    kept: Option<Line>,
    /// Whether it stands for several sources.
    mixed: bool,
}

impl Repeats {
    /// Says what becomes of a line of this source.
    pub fn admit(&mut self, source: Source, now: Instant) -> Fate {
        let (key, mixed) = self.key(source);
        let Some(entry) = self.entries.get_mut(&key) else {
            let entry = Entry { network: source.network, since: now, count: 0, kept: None, mixed };
            self.entries.insert(key, entry);
            *self.shares.entry(source.network).or_default() += 1;
            return Fate::Written;
        };
        entry.count += 1;
        if entry.count == 1 { Fate::Kept(Ticket(key)) } else { Fate::Counted }
    }

    /// Keeps a line.
    pub fn keep(&mut self, ticket: &Ticket, line: Line) {
        if let Some(entry) = self.entries.get_mut(&ticket.0) {
            entry.kept = Some(line);
        }
    }

    /// Takes the lines whose second is over; with `all`, every one.
    pub fn due(&mut self, now: Instant, all: bool) -> Vec<(Line, u64)> {
        let mut due = Vec::new();
        let shares = &mut self.shares;
        self.entries.retain(|_, entry| {
            let is_over = now.duration_since(entry.since) >= PERIOD;
            let is_asked_for = all && entry.count > 0;
            if !is_over && !is_asked_for {
                return true;
            }
            if entry.count > 0 && entry.kept.is_none() {
                // It is being written just now.
                return true;
            }
            if let Some(mut line) = entry.kept.take() {
                if entry.count > 1 || entry.mixed {
                    line.count(entry.count, entry.mixed);
                }
                due.push((line, entry.count));
                (entry.count, entry.since) = (0, now);
                return true;
            }
            if let Some(share) = shares.get_mut(&entry.network) {
                *share -= 1;
                if *share == 0 {
                    shares.remove(&entry.network);
                }
            }
            false
        });
        due
    }

    /// Whether nothing is waited for.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry that a source has, and whether it is one for several.
    fn key(&self, source: Source) -> (u64, bool) {
        let has = |key| self.entries.contains_key(&key);
        let share = self.shares.get(&source.network).copied().unwrap_or(0);
        let is_room = self.entries.len() < MOST;
        if has(source.exact) || (is_room && share < SHARE) {
            (source.exact, false)
        } else if has(source.of_network) || is_room {
            (source.of_network, true)
        } else {
            (source.of_place, true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::Format;

    fn line(text: &str) -> Line {
        let mut line = Line::of_fields(Format::Text);
        line.text("x", text);
        line
    }

    /// A table, its clock, and what it wrote.
    struct Log {
        repeats: Repeats,
        now: Instant,
        written: Vec<String>,
    }

    impl Log {
        fn new() -> Self {
            Self { repeats: Repeats::default(), now: Instant::now(), written: Vec::new() }
        }

        fn say(&mut self, source: Source, text: &str) {
            match self.repeats.admit(source, self.now) {
                Fate::Written => self.written.push(line(text).finish()),
                Fate::Kept(ticket) => self.repeats.keep(&ticket, line(text)),
                Fate::Counted => {}
            }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            let due = self.repeats.due(self.now, false);
            self.written.extend(due.into_iter().map(|(line, _)| line.finish()));
        }

        fn count(&self) -> u64 {
            let count = |line: &String| match line.split_once("count=") {
                Some((_, rest)) => rest.split_whitespace().next().unwrap().parse().unwrap(),
                None => 1,
            };
            self.written.iter().map(count).sum()
        }
    }

    #[test]
    fn the_first_line_of_a_second_is_written_at_once_and_the_rest_is_counted() {
        let mut log = Log::new();
        for at in 0..1000 {
            // Each from another port.
            log.say(Source::new("denied", &format!("10.0.0.1:{}", 10_000 + at), "web"), &at.to_string());
            if at == 0 {
                assert_eq!(log.written, ["x=0\n"]);
            }
            log.pass(Duration::from_millis(2));
        }
        log.pass(PERIOD);
        log.pass(PERIOD);
        assert_eq!(log.written, ["x=0\n", "x=1 count=499\n", "x=500 count=500\n"]);
        assert!(log.repeats.is_empty() && log.repeats.shares.is_empty(), "nothing is left of it");
    }

    #[test]
    fn telling_everything_now_begins_no_new_second() {
        let mut log = Log::new();
        let source = Source::new("denied", "10.0.0.1:1", "web");
        for text in ["first", "second"] {
            log.say(source, text);
        }
        let all: Vec<_> = (0..2).flat_map(|_| log.repeats.due(log.now, true)).collect();
        assert_eq!(all.len(), 1);
        log.say(source, "third");
        assert_eq!(log.written, ["x=first\n"], "the third is counted");
    }

    #[test]
    fn peers_pods_and_ports_have_lines_of_their_own() {
        let mut log = Log::new();
        for peer in ["10.0.0.1:5", "10.0.0.2:5", "[fd00::1]:5", "[fd00::2]:5"] {
            for what in [("web", 80), ("web", 81), ("far", 80)] {
                log.say(Source::new("denied", peer, what), "denied");
                log.say(Source::new("refused", peer, what), "refused");
            }
        }
        log.pass(PERIOD);
        assert_eq!(log.count(), 24);
        let mixed = |line: &&String| line.contains("mixed");
        assert_eq!(
            log.written.iter().filter(mixed).count(),
            0,
            "two of a /64 have their share: {:?}",
            log.written
        );
    }

    #[test]
    fn whatever_addresses_and_ports_peers_choose_their_lines_are_bounded_and_all_counted() {
        let mut log = Log::new();
        let honest = Source::new("denied", "10.9.9.9:1", "web");
        log.say(honest, "honest");
        for port in 0..20_000 {
            log.say(Source::new("denied", "10.0.0.1:9", port), "one host, many ports");
        }
        assert!(log.written.len() <= 2 + SHARE as usize, "{}", log.written.len());
        for host in 0..20_000 {
            log.say(Source::new("denied", &format!("[fd00::{host:x}]:9"), "web"), "one /64, many hosts");
        }
        assert!(log.written.len() <= 3 + 2 * SHARE as usize, "{}", log.written.len());
        for network in 0..20_000_u32 {
            let peer = std::net::Ipv4Addr::from(0x0b00_0000 + network);
            log.say(Source::new("denied", &format!("{peer}:9"), "web"), "many networks");
        }
        assert!(log.repeats.entries.len() <= MOST + 1, "{}", log.repeats.entries.len());
        log.say(honest, "honest again");
        log.pass(PERIOD);
        assert!(log.written.len() <= 2 * MOST + 2, "{}", log.written.len());
        assert!(log.written.contains(&"x=\"honest again\"\n".to_owned()), "it had an entry already");
        assert_eq!(log.count(), 60_002, "every one is counted");
        log.pass(PERIOD);
        assert!(log.repeats.is_empty() && log.repeats.shares.is_empty());
    }
}
