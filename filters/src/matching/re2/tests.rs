//! What RE2 takes, refuses and matches; see also Envoy 1.40, on which it was measured.

use super::*;

fn full_match(pattern: &str, value: &[u8]) -> bool {
    let (translated, _) = translate(pattern).unwrap();
    let anchored = format!(r"\A(?:{translated})\z");
    regex::bytes::RegexBuilder::new(&anchored).unicode(false).build().unwrap().is_match(value)
}

#[test]
fn characters_are_bytes() {
    let e_acute = "é".as_bytes();
    for (pattern, value, expected) in [
        (".", e_acute, false),
        ("..", e_acute, true),
        ("é", e_acute, true),
        ("é?", b"\xc3".as_slice(), true),
        ("[é]", b"\xc3", true),
        (r"\pL", b"\xe9", true),
        (r"\PL", b"\xff", false),
        (r"\p{^L}", b"1", true),
        (r"\p{Greek}", b"a", false),
        (r"\C\C", e_acute, true),
        (r"\w", b"\xe9", false),
        (r"(?i)\xe9", b"\xc9", false),
        (r"(?i)k", b"K", true),
        ("[[:^alpha:]]", b"\xe9", true),
        (r"\s", b"\x0b", false),
        (r"(?i)\p{^Lu}", b"a", false),
        (r"(?i)[\p{^Lu}x]", b"a", false),
        (r"(?i)[^\P{Lu}]", b"a", true),
    ] {
        assert_eq!(full_match(pattern, value), expected, "{pattern} on {value:?}");
    }
}

#[test]
fn what_only_re2_takes_literally() {
    for (pattern, value) in [
        ("a{,5}", "a{,5}"),
        ("/{id}", "/{id}"),
        ("x{", "x{"),
        ("a{01}", "a{01}"),
        (r"\<\>\_", "<>_"),
        (r"\Qa.b*\E+", "a.b**"),
        (r"\Q..", ".."),
        ("[[a]", "["),
        ("[a&&b]+", "a&b"),
        ("[]a]+", "]a"),
        ("[a-]+", "-a"),
        ("[--a]", "."),
        ("(?P<1>a)(?<n>b)", "ab"),
        ("(?)a", "a"),
        (r"\101\0", "A\0"),
        (r"\x{41}\x42", "AB"),
        ("a#b", "a#b"),
        ("a-~b c", "a-~b c"),
        ("^a$|b", "b"),
        ("a(?i)*b", "aaB"),
        ("(?P<n>a)(?P<n>b)", "ab"),
    ] {
        assert!(full_match(pattern, value.as_bytes()), "{pattern}");
    }
}

#[test]
fn counts_within_one_another_are_bounded() {
    for pattern in
        ["(a{10}){100}", "a{1000}b{1000}", "(a{500}|b{500}){2}", "((a{10})*){100}", "(a{0}){1000}", "(a{9}{|b){100}"]
    {
        assert!(translate(pattern).is_ok(), "{pattern}");
    }
}

#[test]
fn groups_are_counted() {
    assert_eq!(translate("(a)(?:b)(?P<c>d)[(](?i)").unwrap().1, 2);
}

#[test]
fn what_re2_refuses() {
    for (pattern, error) in [
        ("a(?=b)", "invalid perl operator: (?="),
        ("a**", "bad repetition operator: **"),
        ("a{2}{3}", "bad repetition operator: {2}{3}"),
        ("a+?+", "bad repetition operator: +?+"),
        ("a{1001}", "invalid repetition size: {1001}"),
        ("a{3,2}", "invalid repetition size: {3,2}"),
        ("(a{10}){101}", "invalid repetition size: {101}"),
        ("(?:x|(b(a{2,}c)?){20}){26}", "invalid repetition size: {26}"),
        ("*", "no argument for repetition operator: *"),
        ("a|*", "no argument for repetition operator: *"),
        ("(a", "missing ): (a"),
        ("a)(b", "unexpected ): a)(b"),
        ("[a", "missing ]: [a"),
        ("a\\", "trailing \\"),
        (r"\1", r"invalid escape sequence: \1"),
        (r"\y", r"invalid escape sequence: \y"),
        (r"\x{1F6}", r"invalid escape sequence: \x{1F6}"),
        ("[b-a]", "invalid character class range: b-a"),
        ("[[:foo:]]", "invalid character class range: [:foo:]"),
        (r"\p{Foo}", r"invalid character class range: \p{Foo}"),
        ("(?x)a", "invalid perl operator: (?x"),
        ("(?<n", "invalid named capture group: (?<n"),
    ] {
        assert_eq!(translate(pattern).unwrap_err().to_string(), error, "{pattern}");
    }
}
