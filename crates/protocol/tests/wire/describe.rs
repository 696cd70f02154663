//! The published `.proto`, read by a second implementation of protobuf.

use std::collections::BTreeSet;

use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, MessageDescriptor,
    ReflectMessage, Value,
};

/// What the `.proto` says.
pub(crate) fn pool() -> DescriptorPool {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let descriptors = protox::compile(["rollcall.proto"], [folder]).expect("the .proto is valid");
    DescriptorPool::from_file_descriptor_set(descriptors).expect("the .proto is complete")
}

/// The messages of the `.proto`, without the entries of maps.
pub(crate) fn messages(pool: &DescriptorPool) -> Vec<MessageDescriptor> {
    pool.all_messages()
        .filter(|message| !message.is_map_entry())
        .collect()
}

/// The enums of the `.proto`.
pub(crate) fn enums(pool: &DescriptorPool) -> Vec<EnumDescriptor> {
    pool.all_enums().collect()
}

/// Notes "Message.field" for each field that is set in `message`, and "Enum.VALUE" for each value
/// that an enum has there, all the way down.
pub(crate) fn note_contents(message: &DynamicMessage, seen: &mut BTreeSet<String>) {
    for (field, value) in message.fields() {
        seen.insert(format!("{}.{}", message.descriptor().name(), field.name()));
        note_value(&field, value, seen);
    }
}

fn note_value(field: &FieldDescriptor, value: &Value, seen: &mut BTreeSet<String>) {
    match value {
        Value::Message(message) => note_contents(message, seen),
        Value::List(values) => {
            for value in values {
                note_value(field, value, seen);
            }
        }
        Value::EnumNumber(number) => {
            let kind = field.kind();
            let known = kind.as_enum().and_then(|kind| kind.get_value(*number));
            if let Some(known) = known {
                seen.insert(format!("{}.{}", known.parent_enum().name(), known.name()));
            }
        }
        _ => {}
    }
}
