// What the engine tells while it works, and what a front end may hook in.

/** Steps of a CRIU-style action script or RPC notification. */
export type ScriptAction =
  | "pre-dump"
  | "post-dump"
  | "pre-restore"
  | "post-restore"
  | "pre-resume"
  | "post-resume"
  | "setup-namespaces"
  | "post-setup-namespaces"
  | "network-lock"
  | "network-unlock"
  | "status-ready"
  | "pre-stream";

/** Hooks of a front end; a hook that throws fails the operation. */
export interface EngineHooks {
  /** Called at each step that CRIU announces to scripts; `initPid` is the root task once it exists. */
  script?(action: ScriptAction, initPid?: number): void;
  /** Like `script` for a step that must succeed, but does not wait: that is done by the function that it gives. */
  beginScript?(action: ScriptAction, initPid?: number): () => void;
  /** Asked when the tree is frozen: further objects of outside that the tree may use, as --external names them. */
  queryExternal?(): readonly string[];
  /** Takes the master of a terminal whose other end is a task's (--orphan-pts-master); the descriptor is closed afterwards. */
  orphanMaster?(fd: number): void;
}

/** Progress events, in order; times are milliseconds since the start of the operation. */
export type ProgressEvent =
  | {
      readonly kind: "frozen";
      readonly tasks: number;
      readonly threads: number;
      readonly ms: number;
    }
  | { readonly kind: "collected"; readonly ms: number }
  | { readonly kind: "memory"; readonly pages: number; readonly ms: number }
  | { readonly kind: "committed"; readonly ms: number }
  | { readonly kind: "resumed"; readonly ms: number }
  | { readonly kind: "killed"; readonly ms: number }
  | { readonly kind: "planned"; readonly tasks: number; readonly ms: number }
  | { readonly kind: "tree"; readonly ms: number }
  | { readonly kind: "restored"; readonly pid: number; readonly ms: number };

export type ProgressListener = (event: ProgressEvent) => void;

/** CRIU's dump statistics (microseconds and page counts), and our own counts of stops and calls. */
export interface DumpStats {
  freezing_time: number;
  frozen_time: number;
  memdump_time: number;
  memwrite_time: number;
  pages_scanned: number;
  pages_skipped_parent: number;
  pages_written: number;
  pages_lazy: number;
  shpages_scanned: number;
  shpages_skipped_parent: number;
  shpages_written: number;
  /** ptrace stops over all threads, and system calls run inside them. */
  stops: number;
  remote_calls: number;
  tasks: number;
  threads: number;
  /** Pages by which the tree grows at restore: processes have them in common since a fork, and each comes back with its own. */
  pages_shared_by_fork: number;
}

/** CRIU's restore statistics (microseconds and page counts), and our own counts. */
export interface RestoreStats {
  forking_time: number;
  restore_time: number;
  pages_restored: number;
  pages_compared: number;
  pages_skipped_cow: number;
  stops: number;
  remote_calls: number;
  tasks: number;
  threads: number;
}
