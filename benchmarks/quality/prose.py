"""What the page of the study says around its figures."""

INTRODUCTION = """\
# How good a prefix is

Written by `make bench-quality`. Every contender is tried at several learning rates with one seed, and the one whose
loss on validation data is least is trained with three seeds and measured on test data; the rates it was chosen from
stand beside it. Figures are the mean and standard deviation of the three, so of training alone: test data are 358
words, 1,000 texts and 200 prompts, and others would move all rows by more than some rows differ. All train as long,
and not for long, with AdamW, no weight decay, 3 % warm-up and a cosine, on the same examples in the same order.

Two tasks and the documents have a Llama for their base that is pretrained here, from references of E2E without
their meaning representations, nine tenths of WikiText-2, and invented text that teaches it to look at its context.
It is a small model: what holds for it need not hold for one a thousand times as large. The third task has a real
BART that spells words in phonemes."""

IN_SHORT = """\
After a short training on all examples a prefix is level with PEFT's within the spread of seeds, though its loss leans
to being behind on E2E and on phonemes ([six seeds](#beside-pefts-prefix)); from the same text PEFT's trains to the
same figures. PEFT's MLP has the lower loss on phonemes, the better accuracy on families and the higher loss on E2E.
With few examples neither is ahead throughout, but of phonemes, where PEFT's tokens are all in the decoder and it is
([figures](#few-examples)). Where a base is asked about what it sees already, as of families, a prefix comes to what
LoRA and full fine-tuning come to. Where the base is to learn something new, as to spell or to word what is given as a
list, LoRA learns more with as many parameters, and more tokens do not bring a prefix there: it adds to what tokens
attend to, and cannot change how they do (Petrov et al. 2024)."""

TASKS = {
    "phonemes": """\
A BART that knows American phonemes learns British ones, of words that it has signs for. PEFT's prefix stands in the
decoder's self-attention alone, so it has three times the tokens for as many parameters. The model has 64 positions,
which a prefix shares with the word. 1,000 steps of 32 words go some eleven times through the 2,794 of training.""",
    "family": """\
Tell from a reference of E2E whether the place is said to be good for families, said not to be, or neither. Every
contender trains the classifier's head beside its own parameters, which are the ones counted, at a rate of 0.001. The
bare base has a head of random numbers; "head alone" trains it at the best rate of its own. 200 steps of 16 read 3,200
of the 42,061 texts; test data are the first 1,000 of their file, which say "unsaid" more often than the rest.""",
    "e2e": """\
Say what a meaning representation of a restaurant says (Novikova et al. 2017). BLEU and chrF are of 200 prompts
written greedily, the loss is of 500 examples. 200 steps of 8 read 1,600 of the 42,061 examples.""",
}

SETTINGS = """\
The default prefix and others that differ from it in one setting, each at its own best learning rate of the three
around the default's (the MLP of four, a head at the same rate of six). Some are best at the end of the three: "random"
of family, and lengths 1, 2 and 8 of phonemes, at the low one. Sequences of the model of phonemes share 64 positions
with the prefix, so it has other lengths than the rest.

No setting is ahead of the default on all three tasks, and few are on one by more than seeds differ. The MLP gains on
phonemes, as a start from noise does by its loss. A frozen first token loses there, where it is one of four, and costs
nothing where it is one of twenty. Zeros are the worst start everywhere. Twenty tokens are enough here: more bring
nothing and forget more, or come apart."""

VARIANTS = """\
Each is tried on the default prefix, at its own best learning rate of three or four, with one seed; those whose loss on
validation data is below the default's are then trained with three seeds and measured on test data. One seed lets small
differences decide, and for some the best rate was the last one tried: "upper half only" and RMS of phonemes at the high
end, values at three times the rate and the MLP of three layers, of phonemes, at the low one.

None is below the default's in a decoder, so antefix has none of them as an option. On phonemes several are, two by far.
Prefix-Tuning+ (Wang et al. 2025) adds a matrix to each layer in place of tokens: 16 times as many numbers as the prefix
has there, and no keys and values that a file, a mixed batch or vLLM could take. A prefix in cross-attention alone, with
three times the tokens for as many numbers, needs no option of its own: it is `sites=("cross",)`, and worth a try with
any encoder-decoder."""

TWINS = """\
In a decoder the two are one function: from PEFT's numbers antefix trains to PEFT's loss, and what differs is where they
start, at a text here, and there at the noise that `get_peft_model` leaves. Set to the same text, PEFT's trains to the
same figures but for rounding. To tell start from start takes more seeds, so here are six. The same seed has the same
examples in the same order, and beside each of PEFT's stand mean and standard deviation of its differences."""

FEW = """\
The same learning rates, a third of the steps, and examples drawn by the seed. Three seeds make few differences sure. Of
E2E and of families the prefix's loss is below PEFT's with all three seeds at 100 examples, and with one or two of them
at the other sizes; of E2E its BLEU is above PEFT's in the mean with 50 examples and below from 100 on. Of phonemes,
where PEFT's tokens are all in the decoder, its loss is the higher with all seeds but one."""

FORGETTING = """\
Loss on 6,144 tokens from the last tenth of WikiText-2, which the base never read, though its tokenizer did, with what
was trained on E2E switched on. A prefix
or a LoRA that is switched off leaves the base as it was, to the bit; full fine-tuning cannot be switched off."""

LONGER = """\
200 steps read 1,600 of E2E's 42,061 examples. With 1,000 steps, each at its best learning rate there, and three
seeds, both are far better, and as far from each other:"""

DOCUMENTS = """\
Registers of 18 invented people, distilled by `antefix distill` with 1,500 lessons that the base asks itself about
halves of the register, seen 20 times, and measured by 72 questions in four wordings that the base has never read; with
the register in its context it answers them, nevertheless. Divergence is from the base with the whole register in its
context, in nats per token.

The number of lessons, their rate, how often they are seen and that they are of halves was chosen by three registers and
their questions. Those that are "unseen" are three more, by which nothing was chosen; each of their nine prefixes, too,
answers better than the base with the register before it. With one token for twenty a prefix still does, and with one
for forty about as well as the base. A teacher that reads half as much finds a person more surely, and halves that begin
elsewhere each time have it ask about more. Where the teacher had the whole register "at once", the prefix comes near
it, and not past it. "By default" are the defaults of the command, but for lessons as short: 1,024 of three kinds, seen
20 times. The unseen ones were run once more since a question that the base asks itself is held out with all its
answers; the others were run before."""
