//! The way from the unified matcher's proto to a tree. It must not know how a tree is asked.

use prost::Name;
use tidegate_xds::pb::xds::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::xds::r#type::matcher::v3 as pb;
use tidegate_xds::pb::xds::r#type::matcher::v3::matcher as parts;
use tidegate_xds::protos::matcher::{IpMatcher, ServerNameMatcher};
use tidegate_xds::{Coverage, FieldError, any};

use super::{Branches, ByLength, IpBranches, Kind, Map, Matcher, OnMatch, Predicate};
use crate::context::CompileContext;
use crate::matching::input::{ATTRIBUTES_ALONE, Input, Inputs};
use crate::matching::test::Test;
use crate::matching::{Cidr, StringMatcher};

/// The fields that act in the messages compiled here. `keep_matching` acts nowhere, as in Envoy's route tables and RBAC.
pub(in crate::matching) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "xds.type.matcher.v3.Matcher",
        enforced: &["matcher_list", "matcher_tree", "on_no_match"],
        listed: &[],
    },
    Coverage { message: "xds.type.matcher.v3.Matcher.OnMatch", enforced: &["matcher", "action"], listed: &[] },
    Coverage { message: "xds.type.matcher.v3.Matcher.MatcherList", enforced: &["matchers"], listed: &[] },
    Coverage {
        message: "xds.type.matcher.v3.Matcher.MatcherList.FieldMatcher",
        enforced: &["predicate", "on_match"],
        listed: &[],
    },
    Coverage {
        message: "xds.type.matcher.v3.Matcher.MatcherList.Predicate",
        enforced: &["single_predicate", "or_matcher", "and_matcher", "not_matcher"],
        listed: &[],
    },
    Coverage {
        message: "xds.type.matcher.v3.Matcher.MatcherList.Predicate.SinglePredicate",
        enforced: &["input", "value_match", "custom_match"],
        listed: &[],
    },
    Coverage {
        message: "xds.type.matcher.v3.Matcher.MatcherList.Predicate.PredicateList",
        enforced: &["predicate"],
        listed: &[],
    },
    Coverage {
        message: "xds.type.matcher.v3.Matcher.MatcherTree",
        enforced: &["input", "exact_match_map", "prefix_match_map", "custom_match"],
        listed: &[],
    },
    Coverage { message: "xds.type.matcher.v3.Matcher.MatcherTree.MatchMap", enforced: &["map"], listed: &[] },
    Coverage { message: "xds.type.matcher.v3.IPMatcher", enforced: &["range_matchers"], listed: &[] },
    Coverage {
        message: "xds.type.matcher.v3.IPMatcher.IPRangeMatcher",
        enforced: &["ranges", "on_match", "exclusive"],
        listed: &[],
    },
    Coverage { message: "xds.type.matcher.v3.ServerNameMatcher", enforced: &["domain_matchers"], listed: &[] },
    Coverage {
        message: "xds.type.matcher.v3.ServerNameMatcher.DomainMatcher",
        enforced: &["domains", "on_match"],
        listed: &[],
    },
    Coverage {
        message: "xds.core.v3.TypedExtensionConfig",
        enforced: &["typed_config"],
        listed: &[("name", "extensions are found by the type of their configuration")],
    },
];

/// How an action is compiled.
pub type CompileAction<'c, A> =
    &'c mut dyn FnMut(&TypedExtensionConfig, &mut CompileContext<'_>) -> Result<A, FieldError>;

/// Trees nested deeper than this are refused.
const MAX_DEPTH: usize = 64;

/// The branches of a map.
type Entries<A> = Vec<(Vec<u8>, OnMatch<A>)>;

/// Compiles one tree.
pub(super) struct Compiler<'c, A> {
    inputs: Inputs,
    action: CompileAction<'c, A>,
    depth: usize,
}

impl<'c, A> Compiler<'c, A> {
    pub(super) fn new(inputs: Inputs, action: CompileAction<'c, A>) -> Self {
        Self { inputs, action, depth: 0 }
    }

    pub(super) fn matcher(
        &mut self,
        matcher: &pb::Matcher,
        context: &mut CompileContext<'_>,
    ) -> Result<Matcher<A>, FieldError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(context.error("nested too deeply"));
        }
        let kind = match &matcher.matcher_type {
            None => Kind::Nothing,
            Some(parts::MatcherType::MatcherList(list)) => {
                let compile = |(index, item): (usize, &parts::matcher_list::FieldMatcher)| {
                    context.within_item("matcher_list.matchers", index, |context| self.item(item, context))
                };
                Kind::List(list.matchers.iter().enumerate().map(compile).collect::<Result<_, _>>()?)
            }
            Some(parts::MatcherType::MatcherTree(tree)) => {
                context.within("matcher_tree", |context| self.tree(tree, context))?
            }
        };
        let on_no_match = match &matcher.on_no_match {
            Some(on_match) => {
                let compiled = context.within("on_no_match", |context| self.on_match(Some(on_match), context))?;
                Some(Box::new(compiled))
            }
            None => None,
        };
        self.depth -= 1;
        Ok(Matcher { kind, on_no_match })
    }

    fn item(
        &mut self,
        item: &parts::matcher_list::FieldMatcher,
        context: &mut CompileContext<'_>,
    ) -> Result<(Predicate, OnMatch<A>), FieldError> {
        let predicate = context.within("predicate", |context| self.predicate(item.predicate.as_ref(), context))?;
        let on_match = context.within("on_match", |context| self.on_match(item.on_match.as_ref(), context))?;
        Ok((predicate, on_match))
    }

    fn on_match(
        &mut self,
        on_match: Option<&parts::OnMatch>,
        context: &mut CompileContext<'_>,
    ) -> Result<OnMatch<A>, FieldError> {
        if on_match.is_some_and(|on_match| on_match.keep_matching) {
            return Err(context.error_at("keep_matching", "keep_matching is not supported in this context"));
        }
        match on_match.and_then(|on_match| on_match.on_match.as_ref()) {
            Some(parts::on_match::OnMatch::Matcher(matcher)) => {
                context.within("matcher", |context| self.matcher(matcher, context)).map(OnMatch::Matcher)
            }
            Some(parts::on_match::OnMatch::Action(action)) => {
                context.within("action", |context| (self.action)(action, context)).map(OnMatch::Action)
            }
            None => Err(context.error("a matcher or an action is required")),
        }
    }

    fn predicate(
        &mut self,
        predicate: Option<&parts::matcher_list::Predicate>,
        context: &mut CompileContext<'_>,
    ) -> Result<Predicate, FieldError> {
        use parts::matcher_list::predicate::MatchType;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(context.error("nested too deeply"));
        }
        let compiled = match predicate.and_then(|predicate| predicate.match_type.as_ref()) {
            Some(MatchType::SinglePredicate(single)) => {
                context.within("single_predicate", |context| self.single(single, context))?
            }
            Some(MatchType::OrMatcher(list)) => {
                Predicate::Any(self.predicates("or_matcher.predicate", list, context)?)
            }
            Some(MatchType::AndMatcher(list)) => {
                Predicate::All(self.predicates("and_matcher.predicate", list, context)?)
            }
            Some(MatchType::NotMatcher(inner)) => {
                let inner = context.within("not_matcher", |context| self.predicate(Some(inner), context))?;
                Predicate::Not(Box::new(inner))
            }
            None => return Err(context.error("a predicate is required")),
        };
        self.depth -= 1;
        Ok(compiled)
    }

    fn predicates(
        &mut self,
        field: &str,
        list: &parts::matcher_list::predicate::PredicateList,
        context: &mut CompileContext<'_>,
    ) -> Result<Vec<Predicate>, FieldError> {
        let compile =
            |(index, predicate)| context.within_item(field, index, |context| self.predicate(Some(predicate), context));
        list.predicate.iter().enumerate().map(compile).collect()
    }

    fn single(
        &mut self,
        single: &parts::matcher_list::predicate::SinglePredicate,
        context: &mut CompileContext<'_>,
    ) -> Result<Predicate, FieldError> {
        use parts::matcher_list::predicate::single_predicate::Matcher as Condition;
        let input = self.input(single.input.as_ref(), context)?;
        let test = match &single.matcher {
            Some(Condition::ValueMatch(string)) => {
                let compile = |context: &mut CompileContext<'_>| StringMatcher::compile_xds(string, context);
                Test::String(context.within("value_match", compile)?)
            }
            Some(Condition::CustomMatch(custom)) => {
                let config = custom.typed_config.clone().unwrap_or_default();
                context.within("custom_match.typed_config", |context| Test::compile(&config, context))?
            }
            None => return Err(context.error("a matcher is required")),
        };
        match (input.is_attributes(), test.takes_attributes()) {
            (true, false) => Err(context.error(ATTRIBUTES_ALONE)),
            (false, true) => Err(context.error("Unsupported data input type: string")),
            _ => Ok(Predicate::Single(input, test)),
        }
    }

    fn input(
        &self,
        input: Option<&TypedExtensionConfig>,
        context: &mut CompileContext<'_>,
    ) -> Result<Input, FieldError> {
        let config = input.and_then(|input| input.typed_config.clone()).unwrap_or_default();
        context.within("input.typed_config", |context| Input::compile(&config, self.inputs, context))
    }

    fn tree(&mut self, tree: &parts::MatcherTree, context: &mut CompileContext<'_>) -> Result<Kind<A>, FieldError> {
        use parts::matcher_tree::TreeType;
        let input = self.input(tree.input.as_ref(), context)?;
        if input.is_attributes() {
            return Err(
                context.error(format!("{ATTRIBUTES_ALONE}, currently only string type is supported in map matcher"))
            );
        }
        let branches = match &tree.tree_type {
            Some(TreeType::ExactMatchMap(map)) => {
                Branches::Exact(self.map("exact_match_map", map, context)?.into_iter().collect())
            }
            Some(TreeType::PrefixMatchMap(map)) => {
                let mut lengths: ByLength<usize, Map<_, _>> = Vec::new();
                for (prefix, on_match) in self.map("prefix_match_map", map, context)? {
                    let at = lengths.partition_point(|(length, _)| *length > prefix.len());
                    if lengths.get(at).is_none_or(|(length, _)| *length != prefix.len()) {
                        lengths.insert(at, (prefix.len(), Map::default()));
                    }
                    lengths[at].1.insert(prefix, on_match);
                }
                Branches::Prefix(lengths)
            }
            Some(TreeType::CustomMatch(custom)) => {
                let config = custom.typed_config.clone().unwrap_or_default();
                context.within("custom_match.typed_config", |context| match any::type_name(&config.type_url) {
                    Some(name) if name == IpMatcher::full_name() => {
                        self.ip(&any::unpack(&config, &context.path)?, context)
                    }
                    Some(name) if name == ServerNameMatcher::full_name() => {
                        self.server_name(&any::unpack(&config, &context.path)?, context)
                    }
                    _ => Err(context.error(format!("not supported yet: {}", config.type_url))),
                })?
            }
            None => return Err(context.error("a tree is required")),
        };
        Ok(Kind::Tree { input, branches })
    }

    fn map(
        &mut self,
        field: &str,
        map: &parts::matcher_tree::MatchMap,
        context: &mut CompileContext<'_>,
    ) -> Result<Entries<A>, FieldError> {
        let mut entries: Vec<_> = map.map.iter().collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        let compile = |(key, on_match): (&String, &parts::OnMatch)| {
            let field = format!("{field}.map[{key:?}]");
            let compiled = context.within(&field, |context| self.on_match(Some(on_match), context))?;
            Ok((key.as_bytes().to_vec(), compiled))
        };
        entries.into_iter().map(compile).collect()
    }

    fn ip(&mut self, matcher: &IpMatcher, context: &mut CompileContext<'_>) -> Result<Branches<A>, FieldError> {
        let mut ranges: ByLength<u8, Map<Cidr, Vec<usize>>> = Vec::new();
        let mut branches = Vec::new();
        for (index, item) in matcher.range_matchers.iter().enumerate() {
            context.within_item("range_matchers", index, |context| {
                for (at, range) in item.ranges.iter().enumerate() {
                    let cidr = context.within_item("ranges", at, |context| Cidr::compile_xds(range, context))?;
                    let at = ranges.partition_point(|(length, _)| *length > cidr.prefix_len());
                    if ranges.get(at).is_none_or(|(length, _)| *length != cidr.prefix_len()) {
                        ranges.insert(at, (cidr.prefix_len(), Map::default()));
                    }
                    ranges[at].1.entry(cidr).or_default().push(index);
                }
                let on_match = context.within("on_match", |c| self.on_match(item.on_match.as_ref(), c))?;
                branches.push((on_match, item.exclusive));
                Ok(())
            })?;
        }
        Ok(Branches::Ip(IpBranches { ranges, branches }))
    }

    /// `*.a.com` is kept as `.a.com`.
    fn server_name(
        &mut self,
        matcher: &ServerNameMatcher,
        context: &mut CompileContext<'_>,
    ) -> Result<Branches<A>, FieldError> {
        let mut names = Map::default();
        for (index, item) in matcher.domain_matchers.iter().enumerate() {
            context.within_item("domain_matchers", index, |context| {
                for (at, domain) in item.domains.iter().enumerate() {
                    let name = domain.strip_prefix('*').filter(|rest| !rest.is_empty()).unwrap_or(domain);
                    let on_match = context.within("on_match", |c| self.on_match(item.on_match.as_ref(), c))?;
                    if names.insert(name.to_owned(), on_match).is_some() {
                        let reason = format!("Duplicate domain in ServerNameMatcher: {domain}");
                        return context.within_item("domains", at, |context| Err(context.error(reason)));
                    }
                }
                Ok(())
            })?;
        }
        Ok(Branches::ServerName(names))
    }
}
