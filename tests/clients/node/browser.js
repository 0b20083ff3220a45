'use strict';

// Debian's Chromium, and pages of the console in it.
//
// - startBrowser: one without a window, for all tests of a file.
// - Browser: its pages and its end.
// - Console: a page of the console, with what a person does and sees there.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { chromium } = require('playwright-core');
const { DEADLINE_MS } = require('./gateway');

const CHROMIUM = process.env.CHROMIUM || '/usr/bin/chromium';

// Kept when the tests are over, for people to look at.
const SCREENSHOTS = path.join(process.env.TEST_DIRECTORY || os.tmpdir(), 'screenshots');

// Nothing that asks for a network, a screen or a user of its own. Root cannot have the sandbox.
const FLAGS = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/** To be stopped by its user. */
async function startBrowser() {
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS, timeout: 4 * DEADLINE_MS });
  return new Browser(browser);
}

class Browser {
  #browser;

  constructor(browser) {
    this.#browser = browser;
  }

  /** The console of `gateway`, as a person finds it who has just opened it. `options` are Playwright's. */
  async open(gateway, options = {}) {
    const context = await this.#browser.newContext(options);
    context.setDefaultTimeout(DEADLINE_MS);
    const page = await context.newPage();
    const opened = new Console(page);
    await page.goto(`http://${gateway.address}/`);
    return opened;
  }

  async stop() {
    await this.#browser.close();
  }
}

class Console {
  #complaints = [];

  constructor(page) {
    this.page = page;
    // A violation of the page's policy is told as an error here, as is everything that goes wrong.
    page.on('console', (message) => {
      // A lost connection is no fault of the page.
      const isExpected = message.text().includes('WebSocket connection to');
      if (message.type() === 'error' && !isExpected) this.#complaints.push(message.text());
    });
    page.on('pageerror', (error) => this.#complaints.push(error.message));
    page.on('dialog', (dialog) => {
      this.#complaints.push(`a dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
  }

  button(name) {
    return this.page.getByRole('button', { name, exact: true });
  }

  field(label) {
    return this.page.getByLabel(label, { exact: true });
  }

  async state() {
    return (await this.page.locator('#state').innerText()).replace(/\s+/g, ' ').trim();
  }

  /** What is said in so many words, anywhere on the page. */
  async says(text) {
    await this.page.getByText(text).first().waitFor();
  }

  async until(words) {
    await this.page.locator('#state-words', { hasText: new RegExp(`^${words}$`) }).waitFor();
  }

  // Waits that begin from now on do not end by themselves.
  async neverStopWaiting() {
    await this.page.evaluate(() => {
      window.setTimeout = () => 0;
    });
  }

  /** Connects by the buttons, to a channel; the empty name is the echo. */
  async connect(channel) {
    await this.field('Channel').fill(channel);
    await this.button('Connect').click();
    await this.until('open');
  }

  async send(text) {
    await this.field('Text').fill(text);
    await this.button('Send Message').click();
  }

  /** The messages of the log: [from, to, content], without what the connection itself did. */
  messages() {
    return this.#rows('tr.sent, tr.received');
  }

  /** What the connection did. */
  events() {
    return this.#rows('tr.event');
  }

  async #rows(selector) {
    return this.page.locator('#rows').locator(selector).evaluateAll((rows) =>
      rows.map((row) => [...row.cells].slice(0, 3).map((cell) => cell.innerText)));
  }

  /** The messages, as soon as there are `count`. */
  async read(count) {
    const rows = this.page.locator('#rows').locator('tr.sent, tr.received');
    await rows.nth(count - 1).waitFor();
    return this.messages();
  }

  async screenshot(name) {
    fs.mkdirSync(SCREENSHOTS, { recursive: true });
    await this.page.screenshot({ path: path.join(SCREENSHOTS, `console-${name}.png`) });
  }

  /** Closes the page, and demands that nothing went wrong in it. */
  async leave() {
    await this.page.context().close();
    assert.deepEqual(this.#complaints, []);
  }
}

module.exports = { startBrowser };
