/**
 * Reprise as a library: save a running process tree, and bring it back.
 *
 * ```ts
 * import { checkpoint, restore } from "reprise";
 *
 * await checkpoint({ pid: 4242, imagesDir: "/var/tmp/images", leave: "running" });
 * const { pid } = await restore({ imagesDir: "/var/tmp/images", newPidNamespace: true });
 * ```
 *
 * @module
 */

export { checkpoint, type CheckpointOptions, type CheckpointResult } from "./engine/checkpoint.ts";
export { restore, type RestoreOptions, type RestoreResult } from "./engine/restore.ts";
export type {
  DumpStats,
  EngineHooks,
  ProgressEvent,
  ProgressListener,
  RestoreStats,
  ScriptAction,
} from "./engine/progress.ts";
export { ERROR_CODES, RepriseError, type ErrorCode, type ErrorDetails } from "./errors.ts";
