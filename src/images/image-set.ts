// An image set on disk: what the engine imports. See image-set-writer.ts and image-set-reader.ts.
export { ImageSetReader } from "./image-set-reader.ts";
export {
  ImageSetWriter,
  type EntryInput,
  type ListKind,
  type WriterOptions,
} from "./image-set-writer.ts";
