// Protobuf (proto2) messages of CRIU's images: bytes to plain objects and back, driven by the table
// that tools/generate-schema.ts makes. Bytes are read with @bufbuild/protobuf; what is ours is the
// table, exactness (fields in ascending number, set-but-default values written: the bytes are those
// that CRIU writes), and limits, since an image may come from anywhere.
export {
  constantList,
  constantMessage,
  encode,
  encodeAhead,
  encodeEntry,
  encodeImage,
  wordsMessage,
  type MessageInput,
} from "./encode.ts";
export { decode, decodePart, MAX_MESSAGE_BYTES, MAX_NESTING } from "./decode.ts";
export {
  fieldsOf,
  type FieldSpec,
  type MessageFields,
  type MessageName,
} from "./message-fields.ts";
