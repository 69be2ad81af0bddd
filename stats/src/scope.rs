//! A prefix and what is counted under it. A scope lives as long as somebody holds it or a handle from it; with the last
//! one its stats vanish.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::block::{Block, Layout};
use crate::histogram::Unit;
use crate::named::{self, OwnedCounter, OwnedGauge, OwnedHistogram, TextReadout};
use crate::store::Store;

/// A prefix in a store, e.g. `cluster.web.`.
#[derive(Clone)]
pub struct Scope {
    pub(crate) store: Arc<Store>,
    pub(crate) members: Arc<Members>,
}

/// A block, and what keeps it in the store.
#[derive(Clone)]
pub struct BlockHandle {
    block: Arc<Block>,
    _members: Arc<Members>,
}

impl Deref for BlockHandle {
    type Target = Block;

    #[inline]
    fn deref(&self) -> &Block {
        &self.block
    }
}

/// Everything that is counted under one prefix.
pub(crate) struct Members {
    pub(crate) prefix: Arc<str>,
    pub(crate) lists: Mutex<Lists>,
}

/// Few scopes have named stats, most have one block: an untouched one stays small.
#[derive(Default)]
pub(crate) struct Lists {
    pub(crate) blocks: SmallVec<[Arc<Block>; 1]>,
    pub(crate) texts: Vec<(&'static str, TextReadout)>,
    named: Option<Box<Named>>,
}

#[derive(Default)]
pub(crate) struct Named {
    pub(crate) counters: HashMap<Box<str>, Arc<Block>>,
    pub(crate) gauges: HashMap<Box<str>, Arc<Block>>,
    pub(crate) histograms: HashMap<Box<str>, Arc<Block>>,
}

impl Members {
    pub(crate) fn new(prefix: Arc<str>) -> Self {
        Self { prefix, lists: Mutex::default() }
    }
}

impl Lists {
    pub(crate) fn named(&self) -> Option<&Named> {
        self.named.as_deref()
    }

    fn named_mut(&mut self) -> &mut Named {
        self.named.get_or_insert_default()
    }
}

impl Scope {
    /// A scope below this one. Its name is cleaned as Envoy's: see [`sanitize`].
    pub fn scope(&self, name: &str) -> Self {
        let name = sanitize(name);
        let dot = if name.is_empty() { "" } else { "." };
        self.verbatim(&format!("{name}{dot}"))
    }

    /// A scope below this one under a name that stays as it is written, up to its dot: some of Envoy's are not cleaned.
    pub fn verbatim(&self, name: &str) -> Self {
        let prefix = format!("{}{name}", self.members.prefix);
        Self { store: Arc::clone(&self.store), members: self.store.members(&prefix) }
    }

    /// The scope without a prefix, for what Envoy counts under names of its own.
    pub fn root(&self) -> Self {
        self.store.root()
    }

    /// What every name in this scope begins with, its trailing dot included.
    pub fn prefix(&self) -> &str {
        &self.members.prefix
    }

    /// Storage for a layout under this prefix; the same prefix and layout share one block.
    pub fn block(&self, layout: &'static Layout) -> BlockHandle {
        self.block_or(layout, Block::new)
    }

    /// The same; where the rules defer stats, its names are not there before the first of them is written.
    pub fn deferrable_block(&self, layout: &'static Layout, name: &'static &'static str) -> BlockHandle {
        let defers = self.store.rules().defers;
        self.block_or(layout, |layout| if defers { Block::deferred(layout, name) } else { Block::new(layout) })
    }

    fn block_or(&self, layout: &'static Layout, make: impl FnOnce(&'static Layout) -> Block) -> BlockHandle {
        let mut lists = self.members.lists.lock();
        let known = lists.blocks.iter().find(|block| std::ptr::eq(block.layout, layout)).map(Arc::clone);
        let block = known.unwrap_or_else(|| {
            let block = Arc::new(make(layout));
            // There are few, and they are made together.
            if lists.blocks.len() == lists.blocks.capacity() {
                lists.blocks.reserve_exact(2);
            }
            lists.blocks.push(Arc::clone(&block));
            block
        });
        self.handle(block)
    }

    /// The counter of this name; the same name gives the same counter. Keep the handle where it is counted often.
    pub fn counter(&self, name: &str) -> OwnedCounter {
        self.note(name);
        OwnedCounter(self.handle(named_block(
            &mut self.members.lists.lock().named_mut().counters,
            name,
            &named::COUNTER,
        )))
    }

    /// The gauge of this name.
    pub fn gauge(&self, name: &str) -> OwnedGauge {
        self.note(name);
        OwnedGauge(self.handle(named_block(&mut self.members.lists.lock().named_mut().gauges, name, &named::GAUGE)))
    }

    /// The histogram of this name; its unit is the first caller's.
    pub fn histogram(&self, name: &str, unit: Unit) -> OwnedHistogram {
        self.note(name);
        let layout = named::histogram_layout(unit);
        OwnedHistogram(self.handle(named_block(&mut self.members.lists.lock().named_mut().histograms, name, layout)))
    }

    /// The text of this name.
    pub fn text_readout(&self, name: &'static str) -> TextReadout {
        self.note(name);
        let texts = &mut self.members.lists.lock().texts;
        if let Some((_, known)) = texts.iter().find(|(own, _)| *own == name) {
            return known.clone();
        }
        let new = TextReadout::default();
        // A scope has one, or two.
        texts.reserve_exact(1);
        texts.push((name, new.clone()));
        new
    }

    fn note(&self, name: &str) {
        self.store.lookups().note(&self.members.prefix, name);
    }

    fn handle(&self, block: Arc<Block>) -> BlockHandle {
        BlockHandle { block, _members: Arc::clone(&self.members) }
    }
}

fn named_block(map: &mut HashMap<Box<str>, Arc<Block>>, name: &str, layout: &'static Layout) -> Arc<Block> {
    if let Some(block) = map.get(name) {
        return Arc::clone(block);
    }
    let block = Arc::new(Block::new(layout));
    map.insert(name.into(), Arc::clone(&block));
    block
}

/// A name as part of a stat's name: without a dot at either end, and with `_` for `://`, `:/`, `:` and NUL.
pub fn sanitize(name: &str) -> String {
    let name = name.strip_suffix('.').unwrap_or(name);
    let name = name.strip_prefix('.').unwrap_or(name);
    name.replace("://", "_").replace(":/", "_").replace([':', '\0'], "_")
}
