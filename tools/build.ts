// Builds dist/: the two executables and the library.
//
// A runtime starts `criu` several times for one checkpoint, so start-up time is a feature. Measured
// with Node 20: a CommonJS entry starts 5 to 9 ms sooner than an ES module, so each executable is one
// CommonJS bundle (a dynamic import inside it runs its module late, and reads no further file), with
// V8's code cache beside it. The loader that `bin/` starts gives both to V8. V8 refuses a cache that
// another version of Node made, and the bundle then runs without; the content hash in the file names
// keeps a bundle and the cache of another build apart.
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { decode } from "@jridgewell/sourcemap-codec";
import { build, type Plugin, type PluginBuild } from "esbuild";
import { encodeBundlePlaces, type BundlePiece } from "../src/criu/bundle-places.ts";

const ROOT = join(import.meta.dirname, "..");
const DIST = join(ROOT, "dist");
/** An empty directory for the runs that fill the code cache. */
const SCRATCH = mkdtempSync(join(tmpdir(), "reprise-build-"));

const CONTAINER = join(SCRATCH, "container");

interface Executable {
  readonly name: string;
  /** Settings of V8 that `bin/` starts it with: V8 takes a cache only under those under which it was made. */
  readonly settings: readonly string[];
  readonly entry: string;
  /** What is loaded for an action, when it is the first argument; the one without a name is for all others. */
  readonly actions: Readonly<Record<string, Action>>;
}

interface Action {
  /**
   * Arguments of runs that touch what users wait for: the functions that V8 has compiled then go to a code cache. V8 reads all
   * of a cache before it starts, which takes 2 ms for half a megabyte, so actions may have one of their own. Runs may use what
   * earlier ones have left.
   */
  readonly runs: readonly (readonly string[])[];
  /** Modules that the entry's `import()`s never load for this action. */
  readonly without?: readonly string[];
}

const DUMP = ["dump", "-v4", "-D", SCRATCH, "-o", "dump.log", "-t", "@sleeper"];
// oxfmt-ignore
const RESTORE = ["restore", "-d", "-v4", "-D", SCRATCH, "-o", "restore.log", "--pidfile", join(SCRATCH, "pid")];
/** The same for what a container is to the kernel. */
// oxfmt-ignore
const CONTAINER_DUMP = ["dump", "-v4", "-D", CONTAINER, "-o", "dump.log", "-t", "@container", "--external", "mnt[]"];
// oxfmt-ignore
const CONTAINER_RESTORE = ["restore", "-d", "-v4", "-D", CONTAINER, "-o", "restore.log", "--root", "/", "--external", "mnt[]", "--pidfile", join(CONTAINER, "pid")];

/** Of commands that end soon; bin/criu says why. */
const SETTINGS = [
  "--min-semi-space-size=16",
  "--initial-old-space-size=64",
  "--interrupt-budget=1000000",
  "--no-rehash-snapshot",
];

/** What src/criu/run.ts loads for other actions than a dump or a restore. */
// oxfmt-ignore
const OTHERS = ["cpuinfo", "check", "dedup", "lazy-pages", "page-server", "pre-dump", "service", "swrk", "standby/keeper", "standby/worker"];

const EXECUTABLES: readonly Executable[] = [
  {
    name: "criu",
    entry: "src/criu/main.ts",
    settings: SETTINGS,
    actions: {
      dump: { runs: [DUMP], without: [...OTHERS, "restore"] },
      restore: { runs: [RESTORE], without: [...OTHERS, "dump"] },
      "": {
        runs: [["--version"], ["check"], DUMP, RESTORE, CONTAINER_DUMP, CONTAINER_RESTORE],
      },
    },
  },
  {
    name: "reprise",
    settings: SETTINGS,
    entry: "src/cli/main.ts",
    actions: {
      checkpoint: {
        runs: [
          ["run", "--name", "warm", "--", "sleep", "60"],
          ["checkpoint", "warm"],
        ],
      },
      restore: { runs: [["restore", "warm"]] },
      clone: { runs: [["clone", "warm", "warmer"]] },
      "": { runs: [["--version"], ["ps"], ["rm", "--force", "warm"], ["rm", "--force", "warmer"]] },
    },
  },
];

await main();

async function main(): Promise<void> {
  mkdirSync(DIST, { recursive: true });
  mkdirSync(CONTAINER);
  try {
    const version = packageVersion();
    for (const executable of EXECUTABLES) await buildExecutable(executable, version);
  } catch (error) {
    // The bundler has printed its own errors, with their places.
    if (!(error instanceof Error && "errors" in error)) console.error(error);
    console.error("the executables were not built");
    process.exitCode = 1;
    return;
  } finally {
    rmSync(SCRATCH, { recursive: true });
  }
  if (!process.argv.includes("--executables-only")) buildLibrary();
}

function packageVersion(): string {
  const manifest = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as {
    version: string;
  };
  return manifest.version;
}

async function buildExecutable(executable: Executable, version: string) {
  const { name, settings, actions } = executable;
  const before = readdirSync(DIST).filter((file) => file.startsWith(`${name}-`));
  const loaded: Record<string, LoadedFiles> = {};
  for (const [action, { runs, without = [] }] of Object.entries(actions)) {
    const stem = await bundle(executable, { without, version });
    makeCache({ stem, action, settings, runs });
    loaded[action] = loadedFiles(stem, action);
  }
  replaceFile(`${name}.cjs`, loaderText(loaded));
  checkCache(name, settings);
  const kept = new Set(
    Object.values(loaded).flatMap(({ stem, cache }) => [
      `${stem}.cjs`,
      `${stem}.cjs.places`,
      cache,
    ]),
  );
  for (const file of before) if (!kept.has(file)) rmSync(join(DIST, file));
}

/** Bundles an executable and returns the beginning of its files' names. */
async function bundle(
  { name, entry }: Executable,
  { without, version }: { readonly without: readonly string[]; readonly version: string },
): Promise<string> {
  const result = await build({
    entryPoints: [join(ROOT, entry)],
    plugins: [omit(without, join(ROOT, entry))],
    bundle: true,
    write: false,
    platform: "node",
    target: "node20",
    format: "cjs",
    // So that the loader may read it as Latin-1, which takes no decoding.
    charset: "ascii",
    // A third less to read, of the source and (names) of the cache.
    minify: true,
    // Loaded where they are used: one is a native library, the others are needed by few commands.
    external: ["koffi", "dockerode", "yaml"],
    // A script of node:vm has no import().
    supported: { "dynamic-import": false },
    logLevel: "warning",
    // Not written: what the log needs of it is, see src/criu/bundle-places.ts.
    sourcemap: "external",
    sourcesContent: false,
    outfile: join(DIST, `${name}.cjs`),
    define: {
      REPRISE_VERSION: JSON.stringify(version),
      // Node loads twelve modules for its `performance`.
      "performance.now": "millisecondsUp",
      "import.meta.url": "moduleUrl",
      "import.meta.dirname": "__dirname",
      "import.meta.filename": "__filename",
    },
    // What Node puts around a module is in the file: to put it there at the start would copy a megabyte.
    banner: {
      js: '(function (exports, require, module, __filename, __dirname) { "use strict"; const moduleUrl = "file://" + __filename, millisecondsUp = () => process.uptime() * 1000;',
    },
    footer: { js: "})" },
  });
  const textOf = (ending: string): string =>
    result.outputFiles.find((file) => file.path.endsWith(ending))?.text ?? "";
  const source = textOf(".cjs");
  const stem = `${name}-${createHash("sha256").update(source).digest("hex").slice(0, 12)}`;
  replaceFile(`${stem}.cjs`, source);
  replaceFile(`${stem}.cjs.places`, encodeBundlePlaces(bundlePieces(textOf(".map"))));
  return stem;
}

/** Leaves out modules beside the entry that are loaded when they are needed, and never are. */
function omit(modules: readonly string[], entry: string): Plugin {
  const omitted = new Set(modules.map((module) => `./${module}.ts`));
  const setup = (bundler: PluginBuild): void =>
    bundler.onResolve({ filter: /^\.\// }, ({ kind, path, importer }) => {
      if (kind !== "dynamic-import" || dirname(importer) !== dirname(entry)) return undefined;
      return omitted.has(path) ? { path, external: true } : undefined;
    });
  return { name: "omit", setup };
}

/** What is loaded for one action. */
interface LoadedFiles {
  readonly stem: string;
  /** Bytes of the bundle. */
  readonly size: number;
  readonly cache: string;
  /** Bytes of it; 0 where it could not be made. */
  readonly cacheSize: number;
}

function loadedFiles(stem: string, action: string): LoadedFiles {
  const cache = cacheName(stem, action);
  const sizeOf = (file: string): number =>
    statSync(join(DIST, file), { throwIfNoEntry: false })?.size ?? 0;
  return { stem, size: sizeOf(`${stem}.cjs`), cache, cacheSize: sizeOf(cache) };
}

/** Where the pieces of a bundle come from; one goes on as long as its line in the source is the same. */
function bundlePieces(map: string): BundlePiece[] {
  const { mappings, sources } = JSON.parse(map) as { mappings: string; sources: string[] };
  const pieces: BundlePiece[] = [];
  decode(mappings).forEach((segments, index) => {
    let last: number | undefined;
    for (const [column, source, line] of segments) {
      const from =
        source === undefined || line === undefined
          ? undefined
          : { source: sources[source] ?? "", line: line + 1 };
      const known = from === undefined ? -1 : (source ?? 0) * 2 ** 20 + from.line;
      if (known === last) continue;
      last = known;
      pieces.push({ line: index + 1, column: column + 1, from });
    }
  });
  return pieces;
}

/** Readers of dist/ never see half a file: another process may start an executable meanwhile. */
function replaceFile(name: string, content: string | Buffer): void {
  const path = join(DIST, name);
  writeFileSync(`${path}.new`, content);
  renameSync(`${path}.new`, path);
}

/** Runs the bundle in a process of its own, whose V8 then hands out what it has compiled. */
function makeCache(options: {
  stem: string;
  action: string;
  settings: readonly string[];
  runs: readonly (readonly string[])[];
}): void {
  const { stem, action, settings, runs } = options;
  const path = join(DIST, cacheName(stem, action));
  const maker = join(ROOT, "tools", "code-cache.cjs");
  const env = { PATH: process.env["PATH"] ?? "", REPRISE_HOME: SCRATCH, REPRISE_WARM_UP: "1" };
  try {
    const source = join(DIST, `${stem}.cjs`);
    execFileSync(process.execPath, [...settings, maker, source, path, JSON.stringify(runs)], {
      env,
    });
  } catch (error) {
    rmSync(path, { force: true });
    console.warn(`no code cache for ${path}: ${String(error)}`);
  }
}

function cacheName(stem: string, action: string): string {
  return action === "" ? `${stem}.cache` : `${stem}.${action}.cache`;
}

/** Starts the executable once as `bin/` does: V8 must take the cache, and the program must load. */
function checkCache(name: string, settings: readonly string[]): void {
  const { status, stderr } = spawnSync(
    process.execPath,
    [...settings, join(DIST, `${name}.cjs`), "--version"],
    {
      env: { REPRISE_TRACE_CACHE: "1" },
      encoding: "utf8",
    },
  );
  if (status !== 0) throw new Error(`${name} --version ended with ${status}: ${stderr}`);
  if (!stderr.includes("code cache: used")) console.warn(`${name} starts slowly: ${stderr.trim()}`);
}

/** The file that `bin/` runs. Old syntax on purpose: an old Node must get as far as the message. */
function loaderText(actions: Readonly<Record<string, LoadedFiles>>): string {
  return `"use strict";
var fs = require("fs");
var path = require("path");
var vm = require("vm");
var version = process.versions.node.split(".");
if (Number(version[0]) < 20 || (version[0] === "20" && Number(version[1]) < 19)) {
  process.stderr.write("reprise needs Node.js 20.19 or later, and this is " + process.versions.node + "\\n");
  process.exit(1);
}
var actions = ${JSON.stringify(actions)};
var action = Object.hasOwn(actions, process.argv[2]) ? actions[process.argv[2]] : actions[""];
// One after the other in the same memory: a page that is new costs a microsecond or two.
var bytes = Buffer.allocUnsafeSlow(Math.max(action.size, action.cacheSize));
var file = path.join(__dirname, action.stem + ".cjs");
if (read(file, action.size) < action.size) throw new Error(file + " is cut off: build reprise again");
var source = bytes.latin1Slice(0, action.size);
var cache;
if (action.cacheSize > 0) {
  try {
    cache = bytes.subarray(0, read(path.join(__dirname, action.cache), action.cacheSize));
  } catch (_) {}
}
var script = new vm.Script(source, { filename: file, cachedData: cache });
if (process.env.REPRISE_TRACE_CACHE) {
  process.stderr.write("code cache: " + (cache ? (script.cachedDataRejected ? "rejected" : "used") : "none") + "\\n");
}
script.runInThisContext()(exports, require, module, file, __dirname);

function read(name, size) {
  var fd = fs.openSync(name);
  var length = 0;
  for (var got = 1; got > 0 && length < size; length += got) got = fs.readSync(fd, bytes, length, size - length);
  fs.closeSync(fd);
  return length;
}
`;
}

function buildLibrary(): void {
  rmSync(join(DIST, "lib"), { recursive: true, force: true });
  const tsc = join(ROOT, "node_modules", "typescript", "bin", "tsc");
  const args = [tsc, "-p", "tsconfig.build.json"];
  const { status } = spawnSync(process.execPath, args, { cwd: ROOT, stdio: "inherit" });
  if (status === 0) return;
  console.error("the library was not built: see the type errors above");
  process.exitCode = 1;
}
