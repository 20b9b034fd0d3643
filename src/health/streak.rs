//! Counting passes and failures in a row. Pure.

/// Whether something works, by what it did several times in a row: one lost packet takes nobody down, one lucky answer
/// brings nobody back. The first result decides alone.
#[derive(Debug, Clone)]
pub struct Streak {
    rise: u32,
    fall: u32,
    works: Option<bool>,
    /// Results in a row that contradict `works`.
    against: u32,
}

impl Streak {
    /// `rise` passes in a row bring it up, `fall` failures take it down; 0 counts as 1.
    pub fn new(rise: u32, fall: u32) -> Self {
        Self { rise, fall, works: None, against: 0 }
    }

    /// Goes on, but with these numbers. A failure is forgotten: other circumstances led to it, and the next result decides.
    #[must_use]
    pub fn under(&self, rise: u32, fall: u32) -> Self {
        Self { works: self.works.filter(|works| *works), ..Self::new(rise, fall) }
    }

    /// Counts a result; whether it works now.
    pub fn count(&mut self, passed: bool) -> bool {
        let Some(works) = self.works else { return self.settle(passed) };
        if passed == works {
            self.against = 0;
            return works;
        }
        self.against += 1;
        let needed = if works { self.fall } else { self.rise };
        if self.against >= needed { self.settle(passed) } else { works }
    }

    /// It has failed beyond doubt: no need to wait for more failures.
    pub fn fail(&mut self) {
        self.settle(false);
    }

    /// Whether it works; `None` before the first result.
    pub fn works(&self) -> Option<bool> {
        self.works
    }

    fn settle(&mut self, works: bool) -> bool {
        self.works = Some(works);
        self.against = 0;
        works
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `+` a pass, `-` a failure; the states after each.
    fn run(rise: u32, fall: u32, results: &str) -> String {
        let mut streak = Streak::new(rise, fall);
        results.chars().map(|result| if streak.count(result == '+') { 'U' } else { 'D' }).collect()
    }

    #[test]
    fn by_hand() {
        for (rise, fall, results, states) in [
            (2, 3, "+", "U"),
            (2, 3, "-", "D"),
            (2, 3, "+--+---+-++", "UUUUUUDDDDU"),
            (1, 1, "+-+-", "UDUD"),
            (0, 0, "+-+-", "UDUD"),
            (3, 2, "-++-+++", "DDDDDDU"),
        ] {
            assert_eq!(run(rise, fall, results), states, "{rise} {fall} {results}");
        }
    }

    #[test]
    fn a_failure_beyond_doubt_needs_the_whole_rise_to_mend() {
        let mut streak = Streak::new(2, 3);
        assert_eq!(streak.works(), None);
        streak.count(true);
        streak.fail();
        assert_eq!(streak.works(), Some(false));
        assert!(!streak.count(true));
        assert!(streak.count(true));
    }

    #[test]
    fn other_numbers_keep_a_good_name_and_forget_a_bad_one() {
        let mut streak = Streak::new(2, 3);
        assert_eq!(streak.under(1, 1).works(), None);
        streak.count(true);
        streak.count(false);
        let mut stricter = streak.under(2, 2);
        assert!(stricter.count(false), "counting begins anew");
        assert!(!stricter.count(false));
        assert!(stricter.under(5, 5).count(true), "the next result decides");
    }

    proptest! {
        /// A change of state is always the end of enough equal results in a row, and enough of them always change it.
        #[test]
        fn states_follow_runs(rise in 1_u32..5, fall in 1_u32..5, results in prop::collection::vec(any::<bool>(), 1..60)) {
            let mut streak = Streak::new(rise, fall);
            let mut before = None;
            for (index, &passed) in results.iter().enumerate() {
                let run = results[..=index].iter().rev().take_while(|result| **result == passed).count() as u32;
                let works = streak.count(passed);
                match before {
                    None => prop_assert_eq!(works, passed),
                    Some(before) => prop_assert_eq!(
                        works,
                        if passed != before && run >= if before { fall } else { rise } { passed } else { before }
                    ),
                }
                before = Some(works);
            }
        }
    }
}
