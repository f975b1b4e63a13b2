use std::collections::BTreeMap;
use std::net::IpAddr;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

fn group(last: u8) -> Group {
    Group::of(IpAddr::from([10, 0, 0, last]))
}

fn entered(entry: Entry) -> (PlaceId, Option<PlaceId>) {
    match entry {
        Entry::Placed { id, evicted } => (id, evicted),
        Entry::Full => panic!("full"),
    }
}

#[test]
fn one_address_pushes_out_nobody_but_itself() {
    let mut places = Places::new(Bounds { total: 10, each: 4 });
    let honest: Vec<_> = (1..=6).map(|last| entered(places.enter(group(last))).0).collect();
    let mut of_attacker = Vec::new();
    for _ in 0..100 {
        let (id, evicted) = entered(places.enter(group(100)));
        assert!(evicted.is_none_or(|evicted| of_attacker.contains(&evicted)));
        of_attacker.push(id);
    }
    assert_eq!(places.held_by(group(100)), 4);
    // A newcomer gets the oldest place of the one who has most.
    let (_, evicted) = entered(places.enter(group(7)));
    assert_eq!(evicted, Some(of_attacker[96]));
    honest.iter().for_each(|id| assert!(places.held.contains_key(id)));
}

#[test]
fn the_lower_standing_goes_first_and_who_has_proved_himself_stays() {
    let mut places = Places::new(Bounds { total: 4, each: 4 });
    let ids: Vec<_> = (1..=4).map(|_| entered(places.enter(group(1))).0).collect();
    for (id, standing) in
        ids.iter().zip([Standing::Proven, Standing::Busy, Standing::Idle, Standing::Unproven])
    {
        places.stand(*id, standing);
    }
    for expected in [ids[3], ids[2], ids[1]] {
        let (id, evicted) = entered(places.enter(group(1)));
        assert_eq!(evicted, Some(expected));
        places.stand(id, Standing::Proven);
    }
    assert_eq!(places.enter(group(1)), Entry::Full);
    assert_eq!(places.enter(group(2)), Entry::Full, "of another address no less");
    places.leave(ids[0]);
    assert!(matches!(places.enter(group(2)), Entry::Placed { evicted: None, .. }));
}

/// What the accounting has to come to, by going through everything each time.
#[derive(Default)]
struct Model(BTreeMap<PlaceId, Held>);

impl Model {
    fn count(&self, group: Group, standing: Standing) -> usize {
        self.0.values().filter(|held| held.group == group && held.standing == standing).count()
    }

    fn victim(&self, of: Option<Group>) -> Option<PlaceId> {
        let all = self.0.iter().filter(|(_, held)| held.standing != Standing::Proven);
        let may_go: Vec<_> = all.filter(|(_, held)| of.is_none_or(|of| of == held.group)).collect();
        let standing = may_go.iter().map(|(_, held)| held.standing).min()?;
        let lowest = may_go.into_iter().filter(|(_, held)| held.standing == standing);
        let first = lowest.min_by_key(|(_, held)| {
            let crowd = if of.is_none() { self.count(held.group, standing) } else { 0 };
            (std::cmp::Reverse(crowd), held.turn)
        });
        first.map(|(id, _)| *id)
    }
}

#[test]
fn no_history_breaks_the_bounds_or_evicts_the_wrong_one() {
    const ALL: [Standing; 4] = [Standing::Unproven, Standing::Idle, Standing::Busy, Standing::Proven];
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let bounds = Bounds { total: random.random_range(1..12), each: random.random_range(1..6) };
        let (mut places, mut model) = (Places::new(bounds), Model::default());
        for step in 0..300 {
            let known = model.0.keys().nth(random.random_range(0..12)).copied();
            match (random.random_range(0..4), known) {
                (0, Some(id)) => {
                    places.leave(id);
                    model.0.remove(&id);
                }
                (1, Some(id)) => {
                    let standing = ALL[random.random_range(0..4)];
                    places.stand(id, standing);
                    if let Some(held) = model.0.get_mut(&id) {
                        *held = Held { standing, turn: places.turn, ..*held };
                    }
                }
                _ => enter(&mut places, &mut model, bounds, group(random.random_range(0..5))),
            }
            assert_eq!(places.len(), model.0.len(), "seed {seed}, step {step}");
            assert!(places.len() <= bounds.total);
            for last in 0..5 {
                let of_group = model.0.values().filter(|held| held.group == group(last)).count();
                assert_eq!(places.held_by(group(last)), of_group);
                assert!(of_group <= bounds.each);
            }
        }
        model.0.keys().for_each(|id| places.leave(*id));
        assert!(places.is_empty() && places.of_group.is_empty());
        assert!(places.tiers.iter().all(|tier| tier.oldest_of_the_largest().is_none()));
    }
}

fn enter(places: &mut Places, model: &mut Model, bounds: Bounds, group: Group) {
    let of_group = model.0.values().filter(|held| held.group == group).count();
    let expected = if of_group >= bounds.each {
        Some(model.victim(Some(group)))
    } else if model.0.len() >= bounds.total {
        Some(model.victim(None))
    } else {
        None
    };
    match (places.enter(group), expected) {
        (Entry::Full, Some(None)) => {}
        (Entry::Placed { id, evicted }, None | Some(Some(_))) => {
            assert_eq!(evicted, expected.flatten());
            if let Some(evicted) = evicted {
                model.0.remove(&evicted);
            }
            model.0.insert(id, Held { group, standing: Standing::Unproven, turn: places.turn });
        }
        (entry, expected) => panic!("{entry:?} instead of {expected:?}"),
    }
}
