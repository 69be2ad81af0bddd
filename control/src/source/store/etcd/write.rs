//! A change as a transaction: it is made only if nothing under the prefix changed since it was looked at. It must not know how
//! what is there is followed.

use std::sync::Arc;
use std::time::Duration;

use super::messages::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, Request, RequestOp, TxnRequest,
};
use super::mirror::{self, Mirror};
use super::session::Fault;
use super::{Kept, Shared};
use crate::server::{Resource, ResourceSet, ResourceType};
use crate::source::Refused;
use crate::source::store::change::changes;
use crate::source::store::{Change, ChangeError, Changed, Expected};

/// How often a change is looked at anew because something else changed meanwhile.
const TRIES: usize = 16;

/// How long a change waits to be seen here, too.
const SEEN: Duration = Duration::from_secs(5);

impl Kept {
    pub(in crate::source::store) async fn change(
        &self,
        change: Change,
        only_say: bool,
    ) -> Result<Vec<Changed>, ChangeError> {
        let _one_by_one = self.shared.writing.lock().await;
        let change = self.shared.as_kept(change)?;
        for _ in 0..TRIES {
            let plan = self.shared.plan(change.clone())?;
            if only_say || plan.transaction.success.is_empty() {
                return Ok(plan.changed);
            }
            if self.shared.make(&plan).await? {
                return Ok(plan.changed);
            }
        }
        Err(ChangeError::Conflict(format!("something else changed, {TRIES} times one after another")))
    }
}

/// A change that can be made.
#[derive(Debug)]
struct Plan {
    /// As of when.
    revision: i64,
    changed: Vec<Changed>,
    transaction: TxnRequest,
}

impl Shared {
    /// The change with its resources as every replica will read them.
    fn as_kept(&self, mut change: Change) -> Result<Change, ChangeError> {
        for (resource, _) in &mut change.put {
            let key = mirror::key(&self.url.prefix, resource.kind, &resource.name);
            let read = mirror::read(&self.url.prefix, &key, &mirror::written(resource));
            *resource = read.map_err(|faults| Refused { faults })?;
        }
        Ok(change)
    }

    /// What a change makes of what is there now.
    fn plan(&self, mut change: Change) -> Result<Plan, ChangeError> {
        let served = self.served.lock().clone();
        let mirror = self.mirror.lock();
        // What cannot be read is no resource that a change could look at, but it can be put right.
        let mended = mend(&mirror, &mut change)?;
        let left = mirror.faults.iter().filter(|(key, _)| !mended.iter().any(|mended| *mended.key == ***key));
        let faults: Vec<String> = left.flat_map(|(_, faults)| faults).cloned().collect();
        if !faults.is_empty() {
            return Err(Refused { faults }.into());
        }
        let after = change.made(&mirror.set)?;
        self.elsewhere.check(&after, &served)?;
        let mut changed = changes(&mirror.set, &after);
        let gone = mended.into_iter().filter(|mended| !mended.put);
        changed.extend(gone.map(|Mended { kind, name, .. }| Changed { kind, name, before: None, after: None }));
        let transaction = transaction(&mirror, &changed, &after);
        Ok(Plan { revision: mirror.head.revision, changed, transaction })
    }

    /// Makes it and waits until it is seen here; false: something else came between, and is seen now.
    async fn make(&self, plan: &Plan) -> Result<bool, ChangeError> {
        let Some(session) = self.session.lock().clone() else {
            let why = self.link().fault.map_or_else(String::new, |(fault, _)| format!(": {fault}"));
            return Err(ChangeError::Unreachable(format!("etcd cannot be reached, nothing was changed{why}")));
        };
        let answer = session.transact(plan.transaction.clone()).await.map_err(unmade)?;
        let revision = answer.header.unwrap_or_default().revision;
        let mut here = self.revision.subscribe();
        let seen = here.wait_for(|here| if answer.succeeded { *here >= revision } else { *here > plan.revision });
        match tokio::time::timeout(SEEN, seen).await {
            Ok(_) => Ok(answer.succeeded),
            // It is made; here it shows later.
            Err(_) if answer.succeeded => Ok(true),
            Err(_) => Err(ChangeError::Unreachable(
                "something else changed in etcd, and this replica does not see what: nothing was changed".to_owned(),
            )),
        }
    }
}

/// A key that cannot be read, and that a change is about.
#[derive(Debug)]
struct Mended {
    key: Vec<u8>,
    kind: ResourceType,
    name: Arc<str>,
    /// Something is put there; else it is deleted.
    put: bool,
}

/// Takes out of a change what it expects, or deletes, at keys that cannot be read.
fn mend(mirror: &Mirror, change: &mut Change) -> Result<Vec<Mended>, ChangeError> {
    let unreadable = |kind: ResourceType, name: &str, expected: Option<Expected>| {
        let key = Some(mirror.key(kind, name)).filter(|key| mirror.faults.contains_key(key.as_slice()));
        match (&key, expected) {
            (Some(_), Some(Expected::Nothing | Expected::Version(_))) => {
                Err(ChangeError::Conflict(format!("{} '{name}': found what cannot be read", kind.short())))
            }
            _ => Ok(key),
        }
    };
    let mut mended = Vec::new();
    for (resource, expected) in &mut change.put {
        if let Some(key) = unreadable(resource.kind, &resource.name, *expected)? {
            *expected = None;
            mended.push(Mended { key, kind: resource.kind, name: resource.name.clone(), put: true });
        }
    }
    for (kind, name, expected) in std::mem::take(&mut change.delete) {
        match unreadable(kind, &name, expected)? {
            Some(key) => mended.push(Mended { key, kind, name, put: false }),
            None => change.delete.push((kind, name, expected)),
        }
    }
    Ok(mended)
}

fn transaction(mirror: &Mirror, changed: &[Changed], after: &ResourceSet) -> TxnRequest {
    if changed.is_empty() {
        return TxnRequest::default();
    }
    let (key, range_end) = mirror.range();
    let revision = |key: Vec<u8>, range_end: Vec<u8>, result: CompareResult, revision: i64| Compare {
        result: result.into(),
        target: CompareTarget::Mod.into(),
        key,
        range_end,
        mod_revision: Some(revision),
    };
    // Nobody put anything, and no replica deleted anything: they all write the guard.
    let mut compare = vec![revision(key, range_end, CompareResult::Less, mirror.head.revision + 1)];
    let mut success = Vec::with_capacity(changed.len() + 1);
    for Changed { kind, name, after, .. } in changed {
        let key = mirror.key(*kind, name);
        // Somebody else may have deleted it.
        compare.push(revision(key.clone(), Vec::new(), CompareResult::Equal, mirror.revision_of(&key)));
        success.push(operation(key, after.as_deref()));
    }
    let guard = PutRequest { key: mirror.guard(), value: after.version().into() };
    success.push(RequestOp { request: Some(Request::Put(guard)) });
    TxnRequest { compare, success }
}

fn operation(key: Vec<u8>, resource: Option<&Resource>) -> RequestOp {
    let request = match resource {
        Some(resource) => Request::Put(PutRequest { key, value: mirror::written(resource) }),
        None => Request::DeleteRange(DeleteRangeRequest { key }),
    };
    RequestOp { request: Some(request) }
}

/// Why a transaction was not made, or may not have been.
fn unmade(fault: Fault) -> ChangeError {
    match fault {
        Fault::TooMuch(what) => ChangeError::TooMuch(format!(
            "etcd says: {what} (its --max-txn-ops, 128 unless told otherwise, or --max-request-bytes, 1.5 MiB)"
        )),
        Fault::Denied(_) | Fault::Token(_) | Fault::Answer(_) | Fault::Compacted => {
            ChangeError::Unreachable(format!("etcd refuses the change: {fault}"))
        }
        Fault::Unreachable(why) => {
            ChangeError::Unreachable(format!("etcd did not say whether the change was made, look at it again: {why}"))
        }
    }
}
