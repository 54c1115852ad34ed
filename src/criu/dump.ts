// `criu dump`: options to the engine's checkpoint, and its outcome to CRIU's log, statistics and exit code.

import { checkpoint, type CheckpointOptions } from "../engine/checkpoint.ts";
import type { DumpStats } from "../engine/progress.ts";
import type { NetworkLockMethod } from "../objects/network/lock.ts";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { cgroupDumpOptions } from "./cgroups.ts";
import { holdWarnings, writeHeld } from "./log-file.ts";
import { externalUnixSockets, ghostLimit, numberValue, type CriuOptions } from "./options.ts";
import { namespaceDumpOptions } from "./namespace-options.ts";
import { listenFor, pageServerPlace } from "./page-options.ts";
import type { Directories } from "./paths.ts";
import { cpuCapabilities } from "./cpuinfo.ts";
import { printOut } from "./output.ts";
import { scriptRunner, type Client, type ScriptRunner } from "./scripts.ts";
import { pageCount } from "./stats-text.ts";

const SECOND = 1000;

/** Runs the action. Returns the exit code; errors are thrown, but for a failing post-dump script. */
export async function dump(
  options: CriuOptions,
  directories: Directories,
  request: { readonly client?: Client | undefined; readonly socketInode?: number } = {},
): Promise<number> {
  const { client, socketInode } = request;
  const pid = numberValue(options, "tree", 1);
  if (pid === undefined) {
    throw new RepriseError("BAD_ARGUMENT", "pid not specified", {
      hint: "Give the root of the tree: -t PID.",
    });
  }
  const pageServer = await pageServerPlace(options);
  const runner = scriptRunner({
    scripts: options.lists["action-script"] ?? [],
    imagesDirFd: directories.imagesDirFd,
    client,
  });
  const { streamDump } = options.flags.has("stream") ? await import("./stream.ts") : {};
  using streamed = streamDump?.(options, directories, runner);
  try {
    const { stats, plan } = await checkpoint({
      ...(await engineOptions(options)),
      pid,
      ...(socketInode === undefined ? {} : { requestSocket: socketInode }),
      imagesDir: streamed?.imagesDir ?? directories.imagesDir,
      workDir: directories.workDir,
      hooks: streamed?.hooks ?? runner,
      ...(pageServer === undefined ? {} : { pageServer }),
      ...(await lazyServer(options, runner)),
      onEvent: ({ kind }) => {
        if (kind === "frozen") holdWarnings();
        else if (kind === "resumed" || kind === "killed") writeHeld();
      },
    });
    if (plan !== undefined) printOut(`${plan.join("\n")}\n`);
    if (options.flags.has("display-stats")) printOut(dumpStatsText(stats));
  } catch (error) {
    const status = runner.postDumpStatus();
    if (status === undefined) throw error;
    log.error(error instanceof Error ? error.message : String(error));
    log.error("Dumping FAILED.");
    return status;
  } finally {
    writeHeld();
  }
  log.info("Dumping finished successfully");
  return 0;
}

/** dump --lazy-pages: who asks for the pages that were left in the tasks. */
async function lazyServer(
  options: CriuOptions,
  { script }: Pick<ScriptRunner, "script">,
): Promise<Pick<CheckpointOptions, "lazyPages">> {
  if (!options.flags.has("lazy-pages")) return {};
  const connect = await listenFor(options, () => script?.("status-ready"));
  return { lazyPages: { connect, waitForEnd: options.values["ps-socket"] === undefined } };
}

/** The engine's options that options of CRIU stand for. */
async function engineOptions(
  options: CriuOptions,
): Promise<Omit<CheckpointOptions, "pid" | "imagesDir">> {
  const limit = ghostLimit(options);
  const timeout = numberValue(options, "timeout", 0);
  const parentDir = options.values["prev-images-dir"];
  const freezeCgroup = options.values["freeze-cgroup"];
  return {
    leave: options.leave,
    strict: options.flags.has("strict"),
    dryRun: options.flags.has("explain"),
    shellJob: options.flags.has("shell-job"),
    orphanPtsMaster: options.flags.has("orphan-pts-master"),
    fileLocks: options.flags.has("file-locks"),
    linkRemap: options.flags.has("link-remap"),
    extUnixSk: externalUnixSockets(options),
    cpuInfo: cpuCapabilities(options).inImage,
    tcp: {
      established: options.flags.has("tcp-established"),
      close: options.flags.has("tcp-close"),
      skipInFlight: options.flags.has("skip-in-flight"),
    },
    cgroups: await cgroupDumpOptions(options),
    ...(freezeCgroup === undefined ? {} : { freezeCgroup }),
    ...networkLock(options),
    ...namespaceDumpOptions(options),
    ...(options.flags.has("track-mem") ? { trackMemory: true } : {}),
    ...(options.flags.has("auto-dedup") ? { autoDedup: true } : {}),
    ...(parentDir === undefined ? {} : { parentDir }),
    ...(limit === undefined ? {} : { ghostLimit: limit }),
    ...(timeout === undefined ? {} : { timeoutMs: timeout * SECOND }),
  };
}

/** `none` is CRIU's other word for `skip`; its default is left to the engine, which finds out what the kernel has. */
function networkLock({ values }: CriuOptions): Pick<CheckpointOptions, "networkLock"> {
  const method = values["network-lock"];
  if (method === undefined) return {};
  return { networkLock: method === "none" ? "skip" : (method as NetworkLockMethod) };
}

/** CRIU's text of the statistics. */
export function dumpStatsText(stats: DumpStats): string {
  return [
    "Displaying dump stats:",
    `Freezing time: ${stats.freezing_time} us`,
    `Frozen time: ${stats.frozen_time} us`,
    `Memory dump time: ${stats.memdump_time} us`,
    `Memory write time: ${stats.memwrite_time} us`,
    "IRMAP resolve time: 0 us",
    `Memory pages scanned: ${pageCount(stats.pages_scanned)}`,
    `Memory pages skipped from parent: ${pageCount(stats.pages_skipped_parent)}`,
    `Memory pages written: ${pageCount(stats.pages_written)}`,
    `Lazy memory pages: ${pageCount(stats.pages_lazy)}`,
    "",
  ].join("\n");
}
