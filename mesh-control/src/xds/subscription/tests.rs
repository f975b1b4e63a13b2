use std::collections::{BTreeMap, HashMap};

use mesh_api::wire::xds::Status;

use super::*;
use crate::config::tests::{addresses, service, workload};

fn request() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest::default()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn web() -> Resources {
    addresses([
        ("shop/web", service("web", [10, 96, 0, 1])),
        ("uid-1", workload("uid-1", [10, 244, 1, 1], "shop/web")),
        ("uid-9", workload("uid-9", [10, 244, 1, 9], "")),
    ])
}

fn names(delta: &Delta) -> Vec<&str> {
    let mut names: Vec<_> = delta.resources.iter().map(|resource| resource.name.as_str()).collect();
    names.sort_unstable();
    names
}

fn on_demand() -> Subscription {
    let opt_out = DeltaDiscoveryRequest {
        resource_names_subscribe: strings(&["*"]),
        resource_names_unsubscribe: strings(&["*"]),
        ..request()
    };
    let mut subscription = Subscription::first(opt_out).unwrap();
    let delta = subscription.next(&web(), Part::All, "0", usize::MAX).unwrap();
    assert!(delta.resources.is_empty() && delta.removed.is_empty());
    subscription
}

fn ask(name: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { resource_names_subscribe: strings(&[name]), ..request() }
}

#[test]
fn a_wildcard_gets_everything_once_and_then_changes() {
    let mut subscription = Subscription::first(request()).unwrap();
    let first = subscription.next(&web(), Part::All, "1", usize::MAX).unwrap();
    assert_eq!(names(&first), ["shop/web", "uid-1", "uid-9"]);
    assert!(subscription.next(&web(), Part::All, "2", usize::MAX).is_none());

    let moved = addresses([
        ("shop/web", service("web", [10, 96, 0, 1])),
        ("uid-1", workload("uid-1", [10, 244, 1, 7], "shop/web")),
    ]);
    let change = subscription.next(&moved, Part::All, "2", usize::MAX).unwrap();
    assert_eq!(names(&change), ["uid-1"]);
    assert_eq!(change.removed, ["uid-9"]);
}

#[test]
fn an_empty_mesh_is_an_answer_too() {
    let mut subscription = Subscription::first(request()).unwrap();
    assert!(subscription.next(&Resources::default(), Part::Upserts, "1", usize::MAX).is_some());
    assert!(subscription.next(&Resources::default(), Part::All, "2", usize::MAX).is_none());
}

#[test]
fn a_resumed_stream_gets_the_difference_only() {
    let version = web().get("shop/web").unwrap().version;
    let version = format!("{version:016x}");
    let initial_resource_versions = HashMap::from([
        ("shop/web".to_owned(), version),
        ("uid-1".to_owned(), "stale".to_owned()),
        ("uid-8".to_owned(), "gone".to_owned()),
    ]);
    let mut subscription =
        Subscription::first(DeltaDiscoveryRequest { initial_resource_versions, ..request() }).unwrap();
    let delta = subscription.next(&web(), Part::All, "1", usize::MAX).unwrap();
    assert_eq!(names(&delta), ["uid-1", "uid-9"]);
    assert_eq!(delta.removed, ["uid-8"]);
}

#[test]
fn removals_can_be_held_back() {
    let mut subscription = Subscription::first(request()).unwrap();
    subscription.next(&web(), Part::All, "1", usize::MAX).unwrap();
    assert!(subscription.next(&Resources::default(), Part::Upserts, "2", usize::MAX).is_none());
    let removed = subscription.next(&Resources::default(), Part::All, "2", usize::MAX).unwrap().removed;
    assert_eq!(removed, strings(&["shop/web", "uid-1", "uid-9"]));
}

#[test]
fn answers_are_told_apart() {
    let mut subscription = Subscription::first(request()).unwrap();
    subscription.next(&web(), Part::All, "7", usize::MAX).unwrap();
    assert_eq!(subscription.unacknowledged(), 3);
    let answer = |nonce: &str, error: Option<&str>| DeltaDiscoveryRequest {
        response_nonce: nonce.to_owned(),
        error_detail: error.map(|text| Status { message: text.to_owned(), ..Status::default() }),
        ..request()
    };
    assert_eq!(subscription.update(answer("6", None)).unwrap(), Answer::None);
    assert_eq!(subscription.unacknowledged(), 3);
    let nack = subscription.update(answer("7", Some("uid-1: no address"))).unwrap();
    assert_eq!(nack, Answer::Nack("uid-1: no address".to_owned()));
    assert_eq!(subscription.unacknowledged(), 0);
    assert!(
        subscription.next(&web(), Part::All, "8", usize::MAX).is_none(),
        "what was rejected is not sent again"
    );
}

#[test]
fn on_demand_answers_an_address_with_all_that_belongs_to_it() {
    let mut subscription = on_demand();
    subscription.update(ask("/10.96.0.1")).unwrap();
    let delta = subscription.next(&web(), Part::All, "1", usize::MAX).unwrap();
    assert_eq!(names(&delta), ["shop/web", "uid-1"]);
    assert_eq!(delta.resources.iter().find(|it| it.name == "shop/web").unwrap().aliases, ["/10.96.0.1"]);
    assert!(subscription.next(&web(), Part::All, "2", usize::MAX).is_none(), "the rest is not told");
}

#[test]
fn on_demand_what_was_told_along_stays_current() {
    let mut subscription = on_demand();
    subscription.update(ask("shop/web")).unwrap();
    subscription.next(&web(), Part::All, "1", usize::MAX).unwrap();
    let alone = addresses([("uid-1", workload("uid-1", [10, 244, 1, 1], ""))]);
    let delta = subscription.next(&alone, Part::All, "2", usize::MAX).unwrap();
    assert_eq!(names(&delta), ["uid-1"]);
    assert_eq!(delta.removed, ["shop/web"]);
}

#[test]
fn on_demand_says_what_does_not_exist_and_tells_when_it_does() {
    let mut subscription = on_demand();
    subscription.update(ask("/10.244.1.50")).unwrap();
    let none = subscription.next(&web(), Part::Upserts, "1", usize::MAX).unwrap();
    assert_eq!((none.resources.len(), none.removed), (0, strings(&["/10.244.1.50"])));
    assert!(subscription.next(&web(), Part::All, "2", usize::MAX).is_none());
    let later = addresses([("uid-5", workload("uid-5", [10, 244, 1, 50], ""))]);
    assert_eq!(names(&subscription.next(&later, Part::All, "2", usize::MAX).unwrap()), ["uid-5"]);
}

#[test]
fn on_demand_asked_again_is_answered_again_and_unsubscribed_is_not() {
    let mut subscription = on_demand();
    subscription.update(ask("uid-9")).unwrap();
    subscription.next(&web(), Part::All, "1", usize::MAX).unwrap();
    subscription.update(ask("uid-9")).unwrap();
    assert_eq!(names(&subscription.next(&web(), Part::All, "2", usize::MAX).unwrap()), ["uid-9"]);
    let stop = DeltaDiscoveryRequest { resource_names_unsubscribe: strings(&["uid-9"]), ..request() };
    subscription.update(stop).unwrap();
    let moved = addresses([("uid-9", workload("uid-9", [10, 244, 1, 8], ""))]);
    assert!(subscription.next(&moved, Part::All, "3", usize::MAX).is_none());
}

#[test]
fn on_demand_resumes_with_what_it_held() {
    let held = HashMap::from([
        ("uid-9".to_owned(), format!("{:016x}", web().get("uid-9").unwrap().version)),
        ("/10.0.0.9".to_owned(), String::new()),
    ]);
    let resume = DeltaDiscoveryRequest {
        resource_names_subscribe: strings(&["*"]),
        resource_names_unsubscribe: strings(&["*"]),
        initial_resource_versions: held,
        ..request()
    };
    let mut subscription = Subscription::first(resume).unwrap();
    let delta = subscription.next(&web(), Part::All, "1", usize::MAX).unwrap();
    assert_eq!((delta.resources.len(), delta.removed), (0, strings(&["/10.0.0.9"])));
    let moved = addresses([("uid-9", workload("uid-9", [10, 244, 1, 8], ""))]);
    assert_eq!(names(&subscription.next(&moved, Part::All, "2", usize::MAX).unwrap()), ["uid-9"]);
}

#[test]
fn names_are_limited() {
    let many = (0..=MOST_NAMES).map(|number| number.to_string()).collect();
    let greedy = DeltaDiscoveryRequest { resource_names_subscribe: many, ..request() };
    assert!(Subscription::first(greedy).is_err());
}

/// What comes between two parts is told all the same, once, and what is gone by then is not told at all.
#[test]
fn a_large_state_comes_in_parts_and_may_change_between_them() {
    let mut state = Resources::default();
    for number in 0..100u8 {
        let uid = format!("uid-{number}");
        state.set_address(&uid, Some(&workload(&uid, [10, 0, 0, number], "")));
    }
    let mut subscription = Subscription::first(request()).unwrap();
    let mut held = BTreeMap::new();
    let mut parts = 0;
    while let Some(delta) = subscription.next(&state, Part::All, "1", 1000) {
        parts += 1;
        assert!(delta.resources.len() < 50);
        for resource in &delta.resources {
            held.insert(resource.name.clone(), resource.version.clone());
        }
        for name in &delta.removed {
            assert!(held.remove(name).is_some() || !delta.continues, "{name}");
        }
        if parts == 2 {
            assert!(delta.continues);
            for number in 0..50u8 {
                let uid = format!("uid-{number}");
                state.set_address(&uid, None);
                let moved = workload(&format!("uid-{}", number + 50), [10, 0, 1, number], "");
                state.set_address(&format!("uid-{}", number + 50), Some(&moved));
            }
        }
    }
    let expected: BTreeMap<_, _> =
        state.entries().iter().map(|it| (it.name.to_string(), format!("{:016x}", it.version))).collect();
    assert_eq!(held, expected);
    assert!(parts > 5);
}
