//! How much strangers can make the API server do: each token that nobody knows costs it a `TokenReview`, and
//! whoever reaches port 15012 can make up as many as they like.
//!
//! A token that was refused is refused again for a moment without asking ([`Refused`]). Tokens that differ
//! each time are bounded by how many one address may have refused ([`Budget`]), and by how many are asked
//! about at a time ([`Gate`]). Tokens that were good before have a place of their own, which strangers can't
//! fill.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use aws_lc_rs::rand::SystemRandom;
use mesh_listen::Group;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How long a token that was refused is refused again without asking. Short: its pod may be about to be
/// known, or a clock about to be set.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Most refused tokens that are remembered.
const MOST_REFUSED: usize = 4096;

/// Tokens that may be refused to one address at once: as many as an agent asks with at a time.
const BURST: u32 = 16;
/// How often an address that has used these up gets one back.
const REFILL: Duration = Duration::from_secs(1);
/// Most addresses that are remembered. Those beyond share one budget.
const MOST_ADDRESSES: usize = 4096;

/// Reviews at a time, of unknown tokens and of those that were good before.
const AT_A_TIME: usize = 8;
/// How long a token waits for its turn. An agent waits 10 s for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A token, by what only this process can compute of it: a dump of its memory is no list of tokens.
pub(super) type Digest = [u8; 32];

/// The turns in which the API server is asked.
pub(super) struct Gate {
    unknown: Semaphore,
    known: Semaphore,
    budget: Mutex<Budget>,
    refused: Mutex<Refused>,
    patience: Duration,
    key: Key,
}

/// Why a token has to come again later.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Too many tokens from its address were refused.
    Address,
    /// Too many are waiting already.
    Turn,
}

impl Gate {
    pub fn new() -> Self {
        let key = Key::generate(HMAC_SHA256, &SystemRandom::new());
        Self {
            unknown: Semaphore::new(AT_A_TIME),
            known: Semaphore::new(AT_A_TIME),
            budget: Mutex::default(),
            refused: Mutex::default(),
            patience: PATIENCE,
            key: key.expect("the generator does not fail: all of TLS hangs on it as well"),
        }
    }

    /// What a token is remembered by.
    pub fn digest(&self, token: &[u8]) -> Digest {
        let mut digest = Digest::default();
        digest.copy_from_slice(hmac::sign(&self.key, token).as_ref());
        digest
    }

    /// Why this token was refused a moment ago.
    pub fn refused(&self, token: &Digest) -> Option<String> {
        lock(&self.refused).reason(token, Instant::now())
    }

    /// A turn for a token. One that is not `known` is charged to its sender, unless it turns out not to be
    /// bad ([`Turn::is_not_charged`]).
    pub async fn turn(&self, sender: IpAddr, known: bool) -> Result<Turn<'_>, Wait> {
        let charged = (!known).then_some((&self.budget, Group::of(sender)));
        if charged.is_some_and(|(budget, sender)| !lock(budget).take(sender, Instant::now())) {
            return Err(Wait::Address);
        }
        let turns = if known { &self.known } else { &self.unknown };
        match tokio::time::timeout(self.patience, turns.acquire()).await {
            // They are never closed.
            Ok(Ok(permit)) => Ok(Turn { charged, _permit: permit }),
            Ok(Err(_)) | Err(_) => {
                give_back(charged);
                Err(Wait::Turn)
            }
        }
    }

    /// A token is refused.
    pub fn was_refused(&self, token: Digest, reason: &str) {
        lock(&self.refused).add(token, reason, Instant::now());
    }
}

/// A turn to ask the API server about a token.
pub(super) struct Turn<'a> {
    charged: Option<(&'a Mutex<Budget>, Group)>,
    _permit: SemaphorePermit<'a>,
}

impl Turn<'_> {
    /// The token was not bad: its sender has what it was charged for it again.
    pub fn is_not_charged(&self) {
        give_back(self.charged);
    }
}

fn give_back(charged: Option<(&Mutex<Budget>, Group)>) {
    if let Some((budget, sender)) = charged {
        lock(budget).give_back(sender, Instant::now());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tokens that were refused lately.
#[derive(Default)]
struct Refused(HashMap<Digest, (String, Instant)>);

impl Refused {
    fn reason(&self, token: &Digest, now: Instant) -> Option<String> {
        self.0.get(token).filter(|(_, until)| now < *until).map(|(reason, _)| reason.clone())
    }

    /// Nothing is pushed out by a newer one: who sends many can't have the others asked about again.
    fn add(&mut self, token: Digest, reason: &str, now: Instant) {
        if self.0.len() >= MOST_REFUSED {
            self.0.retain(|_, (_, until)| now < *until);
        }
        if self.0.len() < MOST_REFUSED {
            // A reason may repeat what was sent.
            let reason = reason.chars().take(200).collect();
            self.0.insert(token, (reason, now + REFUSED_FOR));
        }
    }
}

/// What each address has left.
#[derive(Default)]
struct Budget {
    spent: HashMap<Group, Spent>,
    /// Of all addresses that there is no room for.
    others: Spent,
}

/// Tokens that an address has used up, as of a time.
#[derive(Clone, Copy, Default)]
struct Spent {
    tokens: u32,
    since: Option<Instant>,
}

impl Spent {
    /// Less what has come back since.
    fn at(self, now: Instant) -> Self {
        let Some(since) = self.since else { return Self { tokens: 0, since: Some(now) } };
        let passed = now.saturating_duration_since(since);
        let back = u32::try_from(passed.as_millis() / REFILL.as_millis()).unwrap_or(u32::MAX);
        let tokens = self.tokens.saturating_sub(back);
        let since = if tokens == 0 { now } else { since + REFILL * back };
        Self { tokens, since: Some(since) }
    }
}

impl Budget {
    /// Takes one; false if there is none left.
    fn take(&mut self, sender: Group, now: Instant) -> bool {
        let spent = self.of(sender, now);
        *spent = spent.at(now);
        let left = spent.tokens < BURST;
        spent.tokens += u32::from(left);
        left
    }

    fn give_back(&mut self, sender: Group, now: Instant) {
        let spent = self.of(sender, now);
        spent.tokens = spent.tokens.saturating_sub(1);
    }

    fn of(&mut self, sender: Group, now: Instant) -> &mut Spent {
        if self.spent.len() >= MOST_ADDRESSES {
            self.spent.retain(|_, spent| spent.at(now).tokens > 0);
        }
        let full = self.spent.len() >= MOST_ADDRESSES && !self.spent.contains_key(&sender);
        if full { &mut self.others } else { self.spent.entry(sender).or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + last).to_be_bytes())
    }

    fn sender(last: u32) -> Group {
        Group::of(address(last))
    }

    #[test]
    fn what_was_refused_is_remembered_for_a_moment_and_pushed_out_by_nobody() {
        let (mut refused, now) = (Refused::default(), Instant::now());
        let token = |number: u32| {
            let mut digest = Digest::default();
            digest[..4].copy_from_slice(&number.to_be_bytes());
            digest
        };
        for number in 0..2 * u32::try_from(MOST_REFUSED).unwrap() {
            refused.add(token(number), "no", now);
        }
        assert_eq!(refused.0.len(), MOST_REFUSED);
        assert_eq!(refused.reason(&token(0), now).as_deref(), Some("no"), "the first is still there");
        let later = now + REFUSED_FOR;
        assert_eq!(refused.reason(&token(0), later), None, "it may be good by now");
        refused.add(token(u32::MAX), "no", later);
        assert_eq!(refused.0.len(), 1, "what is over makes room");
    }

    #[test]
    fn an_address_uses_up_what_is_its_own() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        let taken = (0..100).filter(|_| budget.take(sender(1), now)).count();
        assert_eq!(taken, BURST as usize);
        assert!(budget.take(sender(2), now), "another has its own");
        assert!(!budget.take(sender(1), now + REFILL / 2));
        assert!(budget.take(sender(1), now + REFILL));
        assert!(!budget.take(sender(1), now + REFILL), "one comes back at a time");
        budget.give_back(sender(1), now + REFILL);
        assert!(budget.take(sender(1), now + REFILL), "a good one is not charged");
        let taken = (0..100).filter(|_| budget.take(sender(1), now + 1000 * REFILL)).count();
        assert_eq!(taken, BURST as usize, "and no more than all");
    }

    #[test]
    fn addresses_without_number_take_no_memory_without_bound() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        let many = 2 * u32::try_from(MOST_ADDRESSES).unwrap();
        let taken = (0..many).filter(|last| budget.take(sender(*last), now)).count();
        assert_eq!(taken, MOST_ADDRESSES + BURST as usize, "those beyond share one budget");
        assert_eq!(budget.spent.len(), MOST_ADDRESSES);
        assert!(budget.take(sender(u32::MAX / 2), now + 100 * REFILL));
        assert_eq!(budget.spent.len(), 1, "who has all back is forgotten");
    }

    #[test]
    fn with_ipv6_a_host_has_a_whole_network() {
        let of = |text: &str| Group::of(text.parse().unwrap());
        assert_eq!(of("fd00:1:2:3::1"), of("fd00:1:2:3:ffff::7"));
        assert_ne!(of("fd00:1:2:3::1"), of("fd00:1:2:4::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[tokio::test]
    async fn strangers_do_not_take_the_turns_of_those_that_are_known() {
        let gate = Gate { patience: Duration::from_millis(50), ..Gate::new() };
        let mut turns = Vec::new();
        for last in 0..u32::try_from(AT_A_TIME).unwrap() {
            turns.push(gate.turn(address(last), false).await.unwrap());
        }
        assert_eq!(gate.turn(address(1000), false).await.map(drop), Err(Wait::Turn), "nobody waits for ever");
        assert!(gate.turn(address(1000), true).await.is_ok());
        turns.pop();
        assert!(gate.turn(address(1000), false).await.is_ok());
    }
}
