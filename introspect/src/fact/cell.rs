//! The encodings of a fact's field in its column: one module each.

#[cfg(test)]
use retrovisor_guest::fact::Value;

/// A number, a count or a flag. Counts beyond 2^63 are written as 2^63 - 1.
pub(crate) mod integer {
    use retrovisor_guest::fact::{Kind, Value};

    pub(crate) const KIND: Kind = Kind::Integer;

    pub(crate) fn value(field: &impl Number) -> Value {
        field.cell()
    }

    /// A type that can be written as an integer.
    pub(crate) trait Number {
        fn cell(&self) -> Value;
    }

    macro_rules! numbers {
        ($($number:ty => $into:ty),*) => {
            $(impl Number for $number {
                fn cell(&self) -> Value {
                    Value::from(<$into>::from(*self))
                }
            })*
        };
    }

    numbers!(bool => bool, u8 => u32, u16 => u32, u32 => u32, u64 => u64, i32 => i64, i64 => i64);

    impl<N: Number> Number for Option<N> {
        fn cell(&self) -> Value {
            self.as_ref().map_or(Value::Null, N::cell)
        }
    }
}

/// A 64-bit word with all its bits: a mask, or a count that a hostile guest may raise beyond 2^63.
pub(crate) mod bits {
    use retrovisor_guest::fact::{Kind, Value};

    pub(crate) const KIND: Kind = Kind::Integer;

    pub(crate) fn value(field: &(impl Into<Option<u64>> + Copy)) -> Value {
        (*field).into().map_or(Value::Null, |word| Value::Integer(word.cast_signed()))
    }
}

/// An address, as text of 16 hexadecimal digits.
pub(crate) mod address {
    use retrovisor_guest::fact::{Kind, Value};

    pub(crate) const KIND: Kind = Kind::Text;

    pub(crate) fn value(field: &(impl Into<Option<u64>> + Copy)) -> Value {
        (*field).into().map_or(Value::Null, Value::address)
    }
}

/// Text, already made printable.
pub(crate) mod text {
    use retrovisor_guest::fact::{Kind, Value};

    use super::Named;

    pub(crate) const KIND: Kind = Kind::Text;

    pub(crate) fn value(field: &impl Text) -> Value {
        field.cell()
    }

    /// A type that can be written as text.
    pub(crate) trait Text {
        fn cell(&self) -> Value;
    }

    impl Text for String {
        fn cell(&self) -> Value {
            self.as_str().into()
        }
    }

    impl Text for char {
        fn cell(&self) -> Value {
            self.to_string().into()
        }
    }

    impl<N: Named> Text for N {
        fn cell(&self) -> Value {
            self.name().into()
        }
    }

    impl<T: Text> Text for Option<T> {
        fn cell(&self) -> Value {
            self.as_ref().map_or(Value::Null, T::cell)
        }
    }
}

/// A value that is written as one of a fixed set of words.
pub(crate) trait Named {
    fn name(&self) -> &'static str;
}

impl Named for &'static str {
    fn name(&self) -> &'static str {
        self
    }
}

/// Whether a cell may be in a column of this kind.
#[cfg(test)]
pub(crate) fn fits(value: &Value, kind: retrovisor_guest::fact::Kind) -> bool {
    use retrovisor_guest::fact::Kind;
    match value {
        Value::Null => true,
        Value::Integer(_) => kind == Kind::Integer,
        Value::Real(_) => kind == Kind::Real,
        Value::Text(_) => kind == Kind::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beyond_an_i64_are_bounded_or_kept_bit_by_bit() {
        assert_eq!(integer::value(&u64::MAX), Value::Integer(i64::MAX));
        assert_eq!(bits::value(&u64::MAX), Value::Integer(-1));
        assert_eq!(bits::value(&None), Value::Null);
        assert_eq!(integer::value(&Some(-1_i32)), Value::Integer(-1));
        assert_eq!(address::value(&Some(1)), Value::address(1));
        assert_eq!(text::value(&Some('R')), Value::from("R"));
    }
}
