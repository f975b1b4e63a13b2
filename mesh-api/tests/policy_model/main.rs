//! The agent's evaluation of policies against a second, naive implementation of Istio's rules, under random
//! policies, workloads and connections.

mod naive;

use std::net::IpAddr;

use mesh_api::{
    identity::SpiffeId,
    plan::{
        Snapshot, Store,
        policy::{ConnectionAttributes, authorize},
    },
    wire::{
        ext,
        security::{
            self, Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch,
            string_match::MatchType,
        },
        type_url,
        workload::{self, Extension, address},
        xds::Resource,
    },
};
use naive::Question;
use prost::Message;
use prost_types::Any;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

const ROUNDS: u64 = 3_000;
const QUESTIONS: usize = 20;

const DOMAINS: [&str; 2] = ["cluster.local", "td"];
const NAMESPACES: [&str; 3] = ["shop", "ops", "shop-2"];
const ACCOUNTS: [&str; 3] = ["web", "client", "we"];
const IPS: [&str; 6] = ["10.0.0.1", "10.0.0.200", "10.1.0.1", "fd00::1", "fd00:0:0:1::1", "::ffff:10.0.0.1"];
const PORTS: [u16; 3] = [80, 8080, 22];

#[test]
fn the_agent_and_the_rules_as_they_are_written_agree() {
    let mut verdicts = [0_u32; 2];
    for seed in 0..ROUNDS {
        let mut random = StdRng::seed_from_u64(seed);
        let policies: Vec<_> = (0..random.random_range(0..5)).map(|n| policy(&mut random, n)).collect();
        let workload = workload(&mut random);
        let snapshot = snapshot(&policies, &workload);
        let held = snapshot.workload(&workload.uid).expect("it was sent");
        for _ in 0..QUESTIONS {
            let question = question(&mut random);
            let expected = naive::allows(&policies, &workload, &question);
            let identity = question.identity.as_ref();
            let identity = identity.map(|[td, ns, sa]| SpiffeId::new(td, ns, sa).expect("well formed"));
            let peer = ConnectionAttributes {
                identity: identity.as_ref(),
                source_ip: address_of(&question.source),
                destination_ip: address_of(&question.destination),
                destination_port: question.port,
            };
            let decision = authorize(&snapshot, &held, &peer);
            let context = format!("seed {seed}: {decision}\n{question:?}\n{workload:?}\n{policies:#?}");
            assert_eq!(decision.is_allowed(), expected, "{context}");
            verdicts[usize::from(expected)] += 1;
        }
    }
    assert!(verdicts.iter().all(|count| *count > 5_000), "both answers are common: {verdicts:?}");
}

fn snapshot(policies: &[Authorization], workload: &workload::Workload) -> Snapshot {
    let mut store = Store::default();
    let address = workload::Address { r#type: Some(address::Type::Workload(workload.clone())) };
    let workloads = vec![resource(type_url::ADDRESS, &workload.uid, &address)];
    assert_eq!(store.apply_response(type_url::ADDRESS, workloads, Vec::new()), []);
    let name = |policy: &Authorization| format!("{}/{}", policy.namespace, policy.name);
    let policies = policies.iter().map(|policy| resource(type_url::AUTHORIZATION, &name(policy), policy));
    // Those that can't be understood are complained of, and kept.
    let _faulty = store.apply_response(type_url::AUTHORIZATION, policies.collect(), Vec::new());
    store.snapshot()
}

fn resource(type_url: &str, name: &str, content: &impl Message) -> Resource {
    let any = Any { type_url: type_url.to_owned(), value: content.encode_to_vec() };
    Resource { version: "1".to_owned(), resource: Some(any), name: name.to_owned(), aliases: Vec::new() }
}

fn workload(random: &mut StdRng) -> workload::Workload {
    let namespace = pick(random, &NAMESPACES).to_owned();
    let mut named: Vec<String> = Vec::new();
    for number in 0..4 {
        for of in NAMESPACES {
            if random.random_bool(0.2) {
                named.push(format!("{of}/p{number}"));
            }
        }
    }
    // Most policies that are named are there.
    let keep = random.random_range(0..3);
    named.truncate(keep);
    workload::Workload {
        uid: "u".to_owned(),
        name: "web".to_owned(),
        namespace,
        addresses: vec![octets("10.0.0.9")],
        authorization_policies: named,
        ..workload::Workload::default()
    }
}

fn policy(random: &mut StdRng, number: usize) -> Authorization {
    let audit = Extension { name: ext::AUDIT.to_owned(), config: None };
    Authorization {
        name: format!("p{number}"),
        namespace: pick(random, &NAMESPACES).to_owned(),
        scope: random.random_range(0..3),
        action: random.random_range(0..2),
        rules: some(random, 3, rule),
        dry_run: random.random_bool(0.1),
        extensions: if random.random_bool(0.1) { vec![audit] } else { Vec::new() },
    }
}

fn rule(random: &mut StdRng) -> Rule {
    let clause = |random: &mut StdRng| Clause { matches: some(random, 2, condition) };
    Rule { clauses: some(random, 2, clause) }
}

/// One to three things are asked for, and rarely something that makes no sense.
fn condition(random: &mut StdRng) -> Match {
    let mut of = Match::default();
    for _ in 0..random.random_range(0..=3) {
        match random.random_range(0..12) {
            0 => of.namespaces.push(text(random, &NAMESPACES)),
            1 => of.not_namespaces.push(text(random, &NAMESPACES)),
            2 => of.principals.push(principal(random)),
            3 => of.not_principals.push(principal(random)),
            4 => of.source_ips.push(network(random)),
            5 => of.not_source_ips.push(network(random)),
            6 => of.destination_ips.push(network(random)),
            7 => of.not_destination_ips.push(network(random)),
            8 => of.destination_ports.push(port(random)),
            9 => of.not_destination_ports.push(port(random)),
            10 => of.service_accounts.push(account(random)),
            _ => of.not_service_accounts.push(account(random)),
        }
    }
    if random.random_bool(0.01) {
        of.extensions.push(Extension { name: "of-the-future".to_owned(), config: None });
    }
    of
}

fn text(random: &mut StdRng, words: &[&str]) -> StringMatch {
    let word = pick(random, words);
    let (start, end) = (word[..word.len() / 2].to_owned(), word[word.len() / 2..].to_owned());
    let match_type = match random.random_range(0..100) {
        0..50 => Some(MatchType::Exact(word.to_owned())),
        50..70 => Some(MatchType::Prefix(start)),
        70..90 => Some(MatchType::Suffix(end)),
        90..99 => Some(MatchType::Presence(())),
        _ => None,
    };
    StringMatch { match_type }
}

fn principal(random: &mut StdRng) -> StringMatch {
    let [td, ns, sa] = identity(random);
    text(random, &[&format!("{td}/ns/{ns}/sa/{sa}")])
}

fn account(random: &mut StdRng) -> ServiceAccountMatch {
    let [_, namespace, service_account] = identity(random);
    ServiceAccountMatch { namespace, service_account }
}

fn network(random: &mut StdRng) -> security::Address {
    let address = octets(pick(random, &IPS));
    let bits = u32::try_from(address.len() * 8).expect("small");
    let length = match random.random_range(0..100) {
        0..40 => bits,
        40..99 => random.random_range(0..=bits),
        _ => bits + 1,
    };
    security::Address { address, length }
}

fn port(random: &mut StdRng) -> u32 {
    if random.random_bool(0.01) { 0 } else { u32::from(pick(random, &PORTS)) }
}

fn question(random: &mut StdRng) -> Question {
    Question {
        identity: random.random_bool(0.8).then(|| identity(random)),
        source: octets(pick(random, &IPS)),
        destination: octets(pick(random, &IPS)),
        port: pick(random, &PORTS),
    }
}

fn identity(random: &mut StdRng) -> [String; 3] {
    [pick(random, &DOMAINS), pick(random, &NAMESPACES), pick(random, &ACCOUNTS)].map(str::to_owned)
}

fn some<T>(random: &mut StdRng, most: usize, one: impl Fn(&mut StdRng) -> T) -> Vec<T> {
    (0..random.random_range(0..=most)).map(|_| one(random)).collect()
}

fn pick<T: Copy>(random: &mut StdRng, from: &[T]) -> T {
    *from.choose(random).expect("there is one")
}

fn octets(ip: &str) -> Vec<u8> {
    match ip.parse().expect("an address") {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> IpAddr {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).expect("four").into(),
        _ => <[u8; 16]>::try_from(bytes).expect("sixteen").into(),
    }
}
