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
  writeFileSync,
} from "node:fs";
import { SourceMap, type SourceMapPayload } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { encodeBundleLines, type SourceLine } from "../src/criu/bundle-lines.ts";

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
  /**
   * Arguments of runs that touch what users wait for: the functions that V8 has compiled then go to a code cache. V8 reads all
   * of a cache before it starts, which takes 2 ms for half a megabyte, so actions may have one of their own; the one without a
   * name is for all others. Runs may use what earlier ones have left.
   */
  readonly warmUp: Readonly<Record<string, readonly (readonly string[])[]>>;
}

const DUMP = ["dump", "-v4", "-D", SCRATCH, "-o", "dump.log", "-t", "@sleeper"];
const RESTORE = ["restore", "-d", "-v4", "-D", SCRATCH, "-o", "restore.log"];
/** The same for what a container is to the kernel. */
// oxfmt-ignore
const CONTAINER_DUMP = ["dump", "-v4", "-D", CONTAINER, "-o", "dump.log", "-t", "@container", "--external", "mnt[]"];
// oxfmt-ignore
const CONTAINER_RESTORE = ["restore", "-d", "-v4", "-D", CONTAINER, "-o", "restore.log", "--root", "/", "--external", "mnt[]", "--pidfile", join(CONTAINER, "pid")];

/** Of commands that end soon; bin/criu says why. */
const SETTINGS = [
  "--max-semi-space-size=64",
  "--min-semi-space-size=64",
  "--initial-old-space-size=64",
  "--interrupt-budget=1000000",
  "--no-rehash-snapshot",
];

const EXECUTABLES: readonly Executable[] = [
  {
    name: "criu",
    entry: "src/criu/main.ts",
    settings: SETTINGS,
    warmUp: {
      dump: [DUMP],
      restore: [RESTORE],
      "": [["--version"], ["check"], DUMP, RESTORE, CONTAINER_DUMP, CONTAINER_RESTORE],
    },
  },
  {
    name: "reprise",
    settings: SETTINGS,
    entry: "src/cli/main.ts",
    warmUp: {
      checkpoint: [
        ["run", "--name", "warm", "--", "sleep", "60"],
        ["checkpoint", "warm"],
      ],
      restore: [["restore", "warm"]],
      clone: [["clone", "warm", "warmer"]],
      "": [["--version"], ["ps"], ["rm", "--force", "warm"], ["rm", "--force", "warmer"]],
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
  const { name, entry, settings, warmUp } = executable;
  const result = await build({
    entryPoints: [join(ROOT, entry)],
    bundle: true,
    write: false,
    platform: "node",
    target: "node20",
    format: "cjs",
    // So that the loader may read it as Latin-1, which takes no decoding.
    charset: "ascii",
    // A code cache holds the names, too: a fifth less to read, for the source and for the cache. Places in the log come from lines.
    minifyIdentifiers: true,
    // Loaded where they are used: one is a native library, the others are needed by few commands.
    external: ["koffi", "dockerode", "yaml"],
    // A script of node:vm has no import().
    supported: { "dynamic-import": false },
    logLevel: "warning",
    // Not written: what the log needs of it is, see src/criu/bundle-lines.ts.
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
    banner: {
      js: '"use strict"; const moduleUrl = "file://" + __filename, millisecondsUp = () => process.uptime() * 1000;',
    },
  });
  const textOf = (ending: string): string =>
    result.outputFiles.find((file) => file.path.endsWith(ending))?.text ?? "";
  const source = textOf(".cjs");
  const stem = `${name}-${createHash("sha256").update(source).digest("hex").slice(0, 12)}`;
  const before = readdirSync(DIST).filter((file) => file.startsWith(`${name}-`));
  replaceFile(`${stem}.cjs`, source);
  replaceFile(`${stem}.cjs.lines`, encodeBundleLines(sourceLines(source, textOf(".map"))));
  for (const [action, runs] of Object.entries(warmUp)) makeCache({ stem, action, settings, runs });
  replaceFile(
    `${name}.cjs`,
    loaderText(
      stem,
      Object.keys(warmUp).filter((action) => action !== ""),
    ),
  );
  checkCache(name, settings);
  for (const file of before) if (!file.startsWith(stem)) rmSync(join(DIST, file));
}

/** Where each line of a bundle comes from. */
function sourceLines(source: string, map: string): (SourceLine | undefined)[] {
  const decoded = new SourceMap(JSON.parse(map) as SourceMapPayload);
  return source.split("\n").map((text, index) => {
    const entry = decoded.findEntry(index, text.length);
    if (!("originalSource" in entry) || entry.generatedLine !== index) return undefined;
    return { source: entry.originalSource, line: entry.originalLine + 1 };
  });
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
    const bundle = join(DIST, `${stem}.cjs`);
    execFileSync(process.execPath, [...settings, maker, bundle, path, JSON.stringify(runs)], {
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
function loaderText(stem: string, actions: readonly string[]): string {
  return `"use strict";
var fs = require("fs");
var path = require("path");
var vm = require("vm");
var version = process.versions.node.split(".");
if (Number(version[0]) < 20 || (version[0] === "20" && Number(version[1]) < 19)) {
  process.stderr.write("reprise needs Node.js 20.19 or later, and this is " + process.versions.node + "\\n");
  process.exit(1);
}
var file = path.join(__dirname, "${stem}.cjs");
var action = ${JSON.stringify(actions)}.find(function (name) { return process.argv[2] === name; });
var cache;
try {
  cache = fs.readFileSync(path.join(__dirname, "${stem}." + (action ? action + "." : "") + "cache"));
} catch (_) {}
var script = new vm.Script(
  "(function (exports, require, module, __filename, __dirname) { " + fs.readFileSync(file, "latin1") + "\\n})",
  { filename: file, cachedData: cache },
);
if (process.env.REPRISE_TRACE_CACHE) {
  process.stderr.write("code cache: " + (cache ? (script.cachedDataRejected ? "rejected" : "used") : "none") + "\\n");
}
script.runInThisContext()(exports, require, module, file, __dirname);
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
