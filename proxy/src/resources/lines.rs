//! Two texts as the lines that differ, with some around them. It must not know what the texts are.

/// Lines shown around those that differ.
const CONTEXT: usize = 3;

/// Of longer parts that differ all is shown as other, without looking for what is common to them.
const MOST_CELLS: usize = 4_000_000;

/// What is other in `after`: gone lines with `-`, new ones with `+`, those around them with a space, `...` for what is left out.
pub(super) fn diff(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let same = before.iter().zip(&after).take_while(|(one, other)| one == other).count();
    let ends = before[same..].iter().rev().zip(after[same..].iter().rev());
    let tail = ends.take_while(|(one, other)| one == other).count();
    let middle = middle(&before[same..before.len() - tail], &after[same..after.len() - tail]);
    let mut all: Vec<(char, &str)> = before[..same].iter().map(|line| (' ', *line)).collect();
    all.extend(middle);
    all.extend(before[before.len() - tail..].iter().map(|line| (' ', *line)));
    show(&all)
}

/// By the longest common subsequence.
fn middle<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<(char, &'a str)> {
    let whole = |lines: &[&'a str], mark: char| lines.iter().map(|line| (mark, *line)).collect::<Vec<_>>();
    if before.len().saturating_mul(after.len()) > MOST_CELLS {
        return [whole(before, '-'), whole(after, '+')].concat();
    }
    let width = after.len() + 1;
    let mut longest = vec![0u32; (before.len() + 1) * width];
    for (row, one) in before.iter().enumerate().rev() {
        for (column, other) in after.iter().enumerate().rev() {
            longest[row * width + column] = if one == other {
                longest[(row + 1) * width + column + 1] + 1
            } else {
                longest[(row + 1) * width + column].max(longest[row * width + column + 1])
            };
        }
    }
    let (mut row, mut column, mut lines) = (0, 0, Vec::new());
    while row < before.len() && column < after.len() {
        if before[row] == after[column] {
            lines.push((' ', before[row]));
            (row, column) = (row + 1, column + 1);
        } else if longest[(row + 1) * width + column] >= longest[row * width + column + 1] {
            lines.push(('-', before[row]));
            row += 1;
        } else {
            lines.push(('+', after[column]));
            column += 1;
        }
    }
    lines.extend(whole(&before[row..], '-'));
    lines.extend(whole(&after[column..], '+'));
    lines
}

fn show(all: &[(char, &str)]) -> String {
    let near = |at: usize| {
        let around = at.saturating_sub(CONTEXT)..(at + CONTEXT + 1).min(all.len());
        all[around].iter().any(|(mark, _)| *mark != ' ')
    };
    let (mut text, mut left_out) = (String::new(), false);
    for (at, (mark, line)) in all.iter().enumerate() {
        if near(at) {
            text += &format!("{mark} {line}\n");
        } else if !left_out {
            text += "  ...\n";
        }
        left_out = !near(at);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_differ_are_shown_with_those_around_them() {
        let before = "a\nb\nc\nd\ne\nf\ng\n";
        assert_eq!(diff(before, "a\nb\nc\nd\ne\nx\ng\n"), "  ...\n  c\n  d\n  e\n- f\n+ x\n  g\n");
        assert_eq!(diff("", "a\n"), "+ a\n");
        assert_eq!(diff("a\n", ""), "- a\n");
        assert_eq!(diff("a\nb\nc\n", "b\nc\nd\n"), "- a\n  b\n  c\n+ d\n");
    }
}
