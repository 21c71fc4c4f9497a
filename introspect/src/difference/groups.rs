//! The frames that changed, grouped by owner.

use std::collections::BTreeMap;

use super::{ChangedFrame, Difference, GroupChange};
use crate::{OwnerMap, PageOwner};

const GROUPS_MAX: usize = 40;

/// Groups the frames by owner, file and process.
pub(super) fn group(old: &OwnerMap, new: &OwnerMap, changed: &[ChangedFrame], difference: &mut Difference) {
    let mut owners: BTreeMap<String, GroupChange> = BTreeMap::new();
    let mut files: BTreeMap<String, GroupChange> = BTreeMap::new();
    let mut processes: BTreeMap<String, GroupChange> = BTreeMap::new();
    for frame in changed {
        let owner = new.explain(frame.gfn);
        add(&mut owners, owner.group(), *frame, None, false);
        let before = || old.explain(frame.gfn).group();
        match &owner {
            PageOwner::PageCache { file: Some(file), page, .. } => {
                let fresh = before() != owner.group();
                add(&mut files, file.to_string(), *frame, Some(*page), fresh);
            }
            PageOwner::Process(mapper) => {
                let fresh = before() != owner.group();
                let area = mapper.area.as_ref().map(|area| format!(" {area}")).unwrap_or_default();
                let name = format!("{} ({}){area}", mapper.comm, mapper.pid);
                add(&mut processes, name, *frame, Some(mapper.virt), fresh);
            }
            _ => {}
        }
    }
    difference.owners = first_groups(owners, |group| {
        // Changed code comes first: unlike data it should not change.
        let code = ["module ", "kernel text"].iter().any(|code| group.owner.starts_with(code));
        (u64::from(!code), u64::MAX - group.pages)
    });
    difference.files = first_groups(files, |group| (group.since, u64::MAX - group.pages));
    difference.processes = first_groups(processes, |group| (group.since, u64::MAX - group.pages));
}

fn add(
    groups: &mut BTreeMap<String, GroupChange>,
    owner: String,
    frame: ChangedFrame,
    place: Option<u64>,
    fresh: bool,
) {
    let group = groups.entry(owner).or_insert_with_key(|owner| GroupChange {
        owner: owner.clone(),
        pages: 0,
        since: frame.since,
        range: place.map(|place| (place, place)),
        new: true,
    });
    group.pages += 1;
    group.since = group.since.min(frame.since);
    group.new &= fresh;
    if let (Some((first, last)), Some(place)) = (&mut group.range, place) {
        (*first, *last) = ((*first).min(place), (*last).max(place));
    }
}

/// The first groups in order; the last one adds up those that do not fit.
fn first_groups(
    groups: BTreeMap<String, GroupChange>,
    rank: impl Fn(&GroupChange) -> (u64, u64),
) -> Vec<GroupChange> {
    let mut all: Vec<GroupChange> = groups.into_values().collect();
    all.sort_by_key(|group| rank(group));
    let rest = all.split_off(all.len().min(GROUPS_MAX));
    if let Some(since) = rest.iter().map(|group| group.since).min() {
        let pages = rest.iter().map(|group| group.pages).sum();
        all.push(GroupChange {
            owner: format!("{} others", rest.len()),
            pages,
            since,
            range: None,
            new: false,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use retrovisor_guest::Gfn;

    use super::*;

    #[test]
    fn what_does_not_fit_is_summed_up() {
        let mut groups = BTreeMap::new();
        for number in 0..50 {
            let frame = ChangedFrame { gfn: Gfn(number), since: 50 - number };
            add(&mut groups, format!("owner {number:02}"), frame, Some(number), true);
        }
        let reported = first_groups(groups, |group| (group.since, group.pages));
        assert_eq!(reported.len(), GROUPS_MAX + 1);
        assert_eq!((reported[0].owner.as_str(), reported[0].range), ("owner 49", Some((49, 49))));
        assert_eq!((reported[GROUPS_MAX].owner.as_str(), reported[GROUPS_MAX].pages), ("10 others", 10));
    }
}
