"""Types that every floor shares. Standard library and msgspec only; nothing here is mutable."""
