//! Regular expressions of routes: what is wrong with those that agents can't use.

use std::collections::HashMap;

use crate::regular_expression::RegularExpression;

/// What was found wrong with expressions. To compile one takes a while, so it is remembered for as long as
/// some route has it.
#[derive(Debug, Default)]
pub(in crate::compile) struct CheckedExpressions {
    problems: HashMap<String, Option<String>>,
    /// Those of before that nobody has asked about yet.
    before: HashMap<String, Option<String>>,
}

impl CheckedExpressions {
    /// For another look at all routes.
    pub fn begin(self) -> Self {
        Self { problems: HashMap::new(), before: self.problems }
    }

    /// After that look.
    pub fn forget_unused(&mut self) {
        self.before = HashMap::new();
    }

    /// What is wrong with an expression, if something is.
    pub fn problem(&mut self, pattern: &str) -> Option<&str> {
        if !self.problems.contains_key(pattern) {
            let known = self.before.remove(pattern);
            let problem = known.unwrap_or_else(|| RegularExpression::new(pattern).err());
            self.problems.insert(pattern.to_owned(), problem);
        }
        self.problems.get(pattern).and_then(Option::as_deref)
    }
}
