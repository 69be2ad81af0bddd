//! URI templates (`envoy.path.match.uri_template`, `envoy.path.rewrite.uri_template`): `/a/*/{name}/{rest=**}`.
//! It must not know routes; a template becomes a regex with named groups, a rewrite a list of literals and groups.

use regex::bytes::Regex;

/// A template that paths are matched against.
#[derive(Debug, Clone)]
pub struct UriTemplate {
    /// As it was written.
    pub text: Box<str>,
    regex: Regex,
}

/// `path_template_rewrite`, bound to the template that captures for it.
#[derive(Debug, Clone)]
pub struct UriRewrite {
    regex: Regex,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(Box<str>),
    Group(usize),
}

/// Why a template or a rewrite is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("a template begins with / and has visible characters only")]
    NotAPath,
    #[error("a literal has a character that is not allowed there")]
    Literal,
    #[error("a brace is not closed")]
    Brace,
    #[error("a variable's name is 1 to 16 letters, digits and underscores, and begins with a letter")]
    VariableName,
    #[error("a variable's pattern is empty or ends in /")]
    VariablePattern,
    #[error("a variable occurs twice")]
    RepeatedVariable,
    #[error("more than 5 variables")]
    TooManyVariables,
    #[error("a glob follows **")]
    AfterTextGlob,
    #[error("only literals may follow an operator within a segment")]
    Suffix,
    #[error("the rewrite begins with / and has no //")]
    RewritePath,
    #[error("the rewrite names a variable that the template does not have")]
    UnknownVariable,
    #[error("the template makes no regex")]
    Regex,
}

const SEGMENT: &str = "[a-zA-Z0-9-._~%!$&'()+,;:@]+";
const TEXT: &str = "[a-zA-Z0-9-._~%!$&'()+,;:@/]*";
const MAX_VARIABLES: usize = 5;

impl UriTemplate {
    pub fn new(text: &str) -> Result<Self, TemplateError> {
        let regex = Parser { rest: text, regex: "^".to_owned(), variables: Vec::new(), text_glob: false }.parse()?;
        Ok(Self { text: text.into(), regex: Regex::new(&regex).map_err(|_| TemplateError::Regex)? })
    }

    pub fn matches(&self, path: &[u8]) -> bool {
        self.regex.is_match(path)
    }

    /// What every path that matches begins with.
    pub fn literal_start(&self) -> &[u8] {
        let end = self.text.find(['*', '{']).unwrap_or(self.text.len());
        &self.text.as_bytes()[..end]
    }
}

impl UriRewrite {
    pub fn new(rewrite: &str, template: &UriTemplate) -> Result<Self, TemplateError> {
        if !rewrite.starts_with('/') || rewrite.contains("//") {
            return Err(TemplateError::RewritePath);
        }
        let mut parts = Vec::new();
        let mut rest = rewrite;
        while !rest.is_empty() {
            let (literal, after) = rest.split_once('{').map_or((rest, None), |(literal, after)| (literal, Some(after)));
            if !literal.bytes().all(|byte| is_literal(byte) || byte == b'/') {
                return Err(TemplateError::Literal);
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.into()));
            }
            let Some(after) = after else { break };
            let (name, after) = after.split_once('}').ok_or(TemplateError::Brace)?;
            let mut groups = template.regex.capture_names();
            let group = groups.position(|group| group == Some(name)).ok_or(TemplateError::UnknownVariable)?;
            parts.push(Part::Group(group));
            rest = after;
        }
        Ok(Self { regex: template.regex.clone(), parts })
    }

    /// The new path; `None` when the path does not match the template any more.
    pub fn apply(&self, path: &[u8]) -> Option<Vec<u8>> {
        let captures = self.regex.captures(path)?;
        let mut out = Vec::with_capacity(path.len());
        for part in &self.parts {
            match part {
                Part::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
                Part::Group(group) => out.extend_from_slice(captures.get(*group).map_or(&[], |group| group.as_bytes())),
            }
        }
        Some(out)
    }
}

fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@".contains(&byte)
}

struct Parser<'a> {
    rest: &'a str,
    regex: String,
    variables: Vec<&'a str>,
    text_glob: bool,
}

impl<'a> Parser<'a> {
    fn parse(mut self) -> Result<String, TemplateError> {
        if !self.rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TemplateError::NotAPath);
        }
        self.rest = self.rest.strip_prefix('/').ok_or(TemplateError::NotAPath)?;
        self.regex.push('/');
        while !self.rest.is_empty() {
            self.segment()?;
            if let Some(after) = self.rest.strip_prefix('/') {
                self.regex.push('/');
                self.rest = after;
            } else if !self.rest.is_empty() {
                // Text right behind an operator or a variable: it must be the end.
                self.literal()?;
                if !self.rest.is_empty() {
                    return Err(TemplateError::Suffix);
                }
            }
        }
        self.regex.push('$');
        Ok(self.regex)
    }

    fn segment(&mut self) -> Result<(), TemplateError> {
        match self.rest.as_bytes().first() {
            Some(b'*') => self.glob(),
            Some(b'{') => self.variable(),
            _ => self.literal(),
        }
    }

    fn literal(&mut self) -> Result<(), TemplateError> {
        let end = self.rest.find('/').unwrap_or(self.rest.len());
        let (literal, rest) = self.rest.split_at(end);
        if literal.is_empty() || !literal.bytes().all(is_literal) {
            return Err(TemplateError::Literal);
        }
        self.regex.push_str(&regex::escape(literal));
        self.rest = rest;
        Ok(())
    }

    fn glob(&mut self) -> Result<(), TemplateError> {
        if self.text_glob {
            return Err(TemplateError::AfterTextGlob);
        }
        let (pattern, rest) = match self.rest.strip_prefix("**") {
            Some(rest) => (TEXT, rest),
            None => (SEGMENT, &self.rest[1..]),
        };
        self.text_glob = pattern == TEXT;
        self.regex.push_str(pattern);
        self.rest = rest;
        Ok(())
    }

    fn variable(&mut self) -> Result<(), TemplateError> {
        let (inside, rest) = self.rest[1..].split_once('}').ok_or(TemplateError::Brace)?;
        let (name, pattern) = inside.split_once('=').map_or((inside, None), |(name, pattern)| (name, Some(pattern)));
        let begins = name.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
        let named = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !begins || !named || name.len() > 16 {
            return Err(TemplateError::VariableName);
        }
        if self.variables.contains(&name) {
            return Err(TemplateError::RepeatedVariable);
        }
        if self.variables.len() == MAX_VARIABLES {
            return Err(TemplateError::TooManyVariables);
        }
        self.variables.push(name);
        self.regex.push_str(&format!("(?P<{name}>"));
        self.rest = pattern.unwrap_or("*");
        self.pattern()?;
        self.regex.push(')');
        self.rest = rest;
        Ok(())
    }

    /// What stands behind a variable's `=`: literals and globs, divided by `/`.
    fn pattern(&mut self) -> Result<(), TemplateError> {
        loop {
            match self.rest.as_bytes().first() {
                None => return Err(TemplateError::VariablePattern),
                Some(b'*') => self.glob()?,
                Some(_) => self.literal()?,
            }
            if self.rest.is_empty() {
                return Ok(());
            }
            self.rest = self.rest.strip_prefix('/').ok_or(TemplateError::VariablePattern)?;
            self.regex.push('/');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(template: &str, path: &str) -> bool {
        UriTemplate::new(template).unwrap().matches(path.as_bytes())
    }

    #[test]
    fn globs_match_segments_or_the_rest() {
        assert!(matches("/bar/*/foo", "/bar/x/foo") && !matches("/bar/*/foo", "/bar/x/y/foo"));
        assert!(matches("/v/**", "/v/a/b/c") && matches("/v/**", "/v/") && !matches("/v/**", "/v"));
        assert!(matches("/v/**.m3u8", "/v/a/b.m3u8") && !matches("/v/**.m3u8", "/v/a/b.ts"));
        assert!(matches("/{c}/{l=en/*}", "/us/en/x") && !matches("/{c}/{l=en/*}", "/us/de/x"));
        assert!(matches("/a/", "/a/") && !matches("/a/", "/a") && matches("/", "/"));
        assert!(!matches("/a.b", "/axb") && !matches("/*", "/a b"));
    }

    #[test]
    fn malformed_templates_are_named() {
        for (template, error) in [
            ("a", TemplateError::NotAPath),
            ("/a b", TemplateError::NotAPath),
            ("/a//b", TemplateError::Literal),
            ("/a*", TemplateError::Literal),
            ("/{a", TemplateError::Brace),
            ("/{1a}", TemplateError::VariableName),
            ("/{abcdefghijklmnopq}", TemplateError::VariableName),
            ("/{a=}", TemplateError::VariablePattern),
            ("/{a=b/}", TemplateError::VariablePattern),
            ("/{a}/{a}", TemplateError::RepeatedVariable),
            ("/{a}/{b}/{c}/{d}/{e}/{f}", TemplateError::TooManyVariables),
            ("/**/*", TemplateError::AfterTextGlob),
            ("/**/{a}", TemplateError::AfterTextGlob),
            ("/*a/b", TemplateError::Suffix),
        ] {
            assert_eq!(UriTemplate::new(template).unwrap_err(), error, "{template}");
        }
    }

    #[test]
    fn a_rewrite_places_what_the_template_captured() {
        let template = UriTemplate::new("/api/users/{id}/{path=v1/**}").unwrap();
        let rewrite = UriRewrite::new("/{path}/users/{id}.x", &template).unwrap();
        assert_eq!(rewrite.apply(b"/api/users/7/v1/a/b").unwrap(), b"/v1/a/b/users/7.x");
        assert_eq!(rewrite.apply(b"/other"), None);
        assert_eq!(UriRewrite::new("/{nope}", &template).unwrap_err(), TemplateError::UnknownVariable);
        assert_eq!(UriRewrite::new("{id}", &template).unwrap_err(), TemplateError::RewritePath);
        assert_eq!(UriRewrite::new("/a*", &template).unwrap_err(), TemplateError::Literal);
    }
}
