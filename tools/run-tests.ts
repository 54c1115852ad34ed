// Runs vitest and ends with the line "N passed, N failed". What vitest could not count is a failure too: a
// crash, a test file that does not load, an error outside of a test. CHECKS_PASSED and CHECKS_FAILED are
// added: the outcomes of checks that ran before.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

interface Report {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly testResults: readonly {
    readonly status: string;
    readonly assertionResults: readonly unknown[];
  }[];
}

const ROOT = join(import.meta.dirname, "..");

main();

function main(): void {
  const directory = mkdtempSync(join(tmpdir(), "reprise-tests-"));
  const file = join(directory, "report.json");
  const vitest = join(ROOT, "node_modules", "vitest", "vitest.mjs");
  const reporters = ["--reporter=default", "--reporter=json", `--outputFile.json=${file}`];
  const args = [vitest, "run", ...reporters, ...process.argv.slice(2)];
  const { status } = spawnSync(process.execPath, args, { cwd: ROOT, stdio: "inherit" });
  const { passed, failed } = outcome(file, status);
  rmSync(directory, { recursive: true });
  const allPassed = passed + Number(process.env["CHECKS_PASSED"] ?? 0);
  const allFailed = failed + Number(process.env["CHECKS_FAILED"] ?? 0);
  process.stdout.write(`${allPassed} passed, ${allFailed} failed\n`);
  process.exitCode = allFailed === 0 && allPassed > 0 ? 0 : 1;
}

function outcome(file: string, status: number | null): { passed: number; failed: number } {
  const report = readReport(file);
  if (report === undefined) return { passed: 0, failed: 1 };
  const unloaded = report.testResults.filter(
    (result) => result.status === "failed" && result.assertionResults.length === 0,
  ).length;
  const failed = report.numFailedTests + unloaded;
  return { passed: report.numPassedTests, failed: failed === 0 && status !== 0 ? 1 : failed };
}

function readReport(file: string): Report | undefined {
  try {
    return JSON.parse(readFileSync(file, "utf8")) as Report;
  } catch {
    return undefined;
  }
}
