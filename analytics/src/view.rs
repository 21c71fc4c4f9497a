use crate::activity::{Activity, Interval, Profiles, TaskUsage, activity, task_usages};
use crate::counter;
use crate::extract::extract;
use crate::model::Observation;
use crate::sample::Sample;
use crate::scale::Moment;

/// A sample beside its parent, with what the tasks did in between.
pub(crate) struct View<'a> {
    sample: &'a Sample,
    parent: Option<&'a Sample>,
    pub(crate) interval: Option<Interval>,
    pub(crate) usages: Vec<TaskUsage<'a>>,
    pub(crate) activity: Activity,
}

impl<'a> View<'a> {
    pub(crate) fn new(sample: &'a Sample, parent: Option<&'a Sample>) -> Self {
        let interval = parent.and_then(|parent| Interval::between(parent, sample));
        Self::over(sample, parent, interval)
    }

    /// As [`View::new`], where the time that passed is not to be trusted.
    pub(crate) fn without_rates(sample: &'a Sample, parent: Option<&'a Sample>) -> Self {
        Self::over(sample, parent, None)
    }

    fn over(sample: &'a Sample, parent: Option<&'a Sample>, interval: Option<Interval>) -> Self {
        let usages = task_usages(sample, parent, interval);
        let activity = activity(&usages, interval);
        Self { sample, parent, interval, usages, activity }
    }

    pub(crate) fn observation(&self, profiles: Option<&Profiles>) -> Observation {
        Observation {
            checkpoint: self.sample.checkpoint,
            moment: Moment {
                uptime_s: self.sample.uptime_s().unwrap_or(0.0),
                interval_s: self.interval.map_or(0.0, |interval| interval.seconds),
            },
            vector: extract(self.sample, self.parent, self.interval, &self.usages, &self.activity, profiles),
            activity: self.activity.clone(),
            counters: counter::rates(self.sample, self.parent, self.interval),
        }
    }
}
