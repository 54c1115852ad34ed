// The statistics files stats-dump and stats-restore, with CRIU's fields.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { entryBytes, headBytes } from "../images/image-file.ts";
import type { DumpStats, RestoreStats } from "./progress.ts";

/** Writes stats-dump. System errors are thrown as they are. */
export function writeDumpStats(dir: string, stats: DumpStats): void {
  write(dir, "stats-dump", entryBytes("stats_entry", { dump: stats }));
}

/** Writes stats-restore. */
export function writeRestoreStats(dir: string, stats: RestoreStats): void {
  write(dir, "stats-restore", entryBytes("stats_entry", { restore: stats }));
}

function write(dir: string, kind: "stats-dump" | "stats-restore", entry: Uint8Array): void {
  writeFileSync(join(dir, kind), Buffer.concat([headBytes(kind), entry]), { mode: 0o600 });
}
