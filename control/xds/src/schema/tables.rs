//! The generated tables; `build/tables.rs` writes them. It must not hold anything written by hand.
#![expect(clippy::unreadable_literal, reason = "generated")]

use super::{
    Enum, EnumValue, Field, Kind, Message, Oneof, Special, Text,
    rules::{Check, FieldRules, Form, Limits, Pattern, TextRules},
};

include!(concat!(env!("OUT_DIR"), "/tables.rs"));
