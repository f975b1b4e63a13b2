//! Labels that objects have in common: the pods of a Deployment have all of them, and labels are a large part
//! of a pod.

use std::collections::HashSet;
use std::sync::Arc;

use super::Labels;

/// So many are held before those are looked for that nobody has any more.
const FEW: usize = 1024;

/// Holds equal labels once.
#[derive(Debug, Default)]
pub struct SharedLabels {
    held: HashSet<Arc<Labels>>,
    /// How many there were when the last look was over.
    after_look: usize,
}

impl SharedLabels {
    /// Has `labels` be the ones that others have, if there are others.
    pub fn share(&mut self, labels: &mut Arc<Labels>) {
        if let Some(held) = self.held.get(labels) {
            *labels = Arc::clone(held);
            return;
        }
        if self.held.len() >= FEW.max(2 * self.after_look) {
            self.held.retain(|labels| Arc::strong_count(labels) > 1);
            self.held.shrink_to_fit();
            self.after_look = self.held.len();
        }
        self.held.insert(Arc::clone(labels));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(app: usize) -> Arc<Labels> {
        Arc::new([("app".to_owned(), app.to_string())].into())
    }

    #[test]
    fn equal_labels_are_held_once_and_others_stay_what_they_are() {
        let mut shared = SharedLabels::default();
        let [mut one, mut same, mut other] = [labels(1), labels(1), labels(2)];
        [&mut one, &mut same, &mut other].into_iter().for_each(|labels| shared.share(labels));
        assert!(Arc::ptr_eq(&one, &same));
        assert_eq!((&*one, &*other), (&*labels(1), &*labels(2)));
    }

    #[test]
    fn what_nobody_has_any_more_is_let_go() {
        let mut shared = SharedLabels::default();
        let mut kept = labels(0);
        shared.share(&mut kept);
        (1..100_000).for_each(|app| shared.share(&mut labels(app)));
        assert!(shared.held.len() <= FEW, "{} are held", shared.held.len());
        let mut again = labels(0);
        shared.share(&mut again);
        assert!(Arc::ptr_eq(&kept, &again));
    }
}
