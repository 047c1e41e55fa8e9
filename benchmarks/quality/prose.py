"""What the page of the study says around its figures."""

INTRODUCTION = """\
# How good a prefix is

Written by `make bench-quality`. Every contender is tried at several learning rates with one seed. At the rate with the
lowest loss on validation data, it is then trained with three seeds and measured on test data; the range of rates tried
is in brackets. Figures are the mean and standard deviation over the three seeds, so the deviation is that of training
only: test data are 358 words, 1,000 texts and 200 prompts, and others would move all rows by more than some rows
differ. All contenders train equally long, and not for long, on the same examples in the same order, with AdamW, no
weight decay, 3 % warm-up and a cosine schedule.

Two tasks and the documents use a Llama that is pretrained here: on E2E references without their meaning
representations, nine tenths of WikiText-2, and invented text that teaches it to look at its context. It is a small
model: what holds for it need not hold for one a thousand times as large. The third task uses a real BART that spells
words in phonemes."""

IN_SHORT = """\
After a short training on all examples, a prefix is level with PEFT's within the spread of seeds, though its loss tends
to be higher on E2E and on phonemes ([six seeds](#beside-pefts-prefix)). Started from the same text, PEFT's trains to
the same figures. With its MLP, PEFT's has the lower loss on phonemes, the better accuracy on Family friendly and the
higher loss on E2E. With few examples, neither is ahead throughout, except on phonemes: there, PEFT's tokens are all in
the decoder, and it is ahead ([figures](#few-examples)).

Where a task asks about what the base already sees, as Family friendly does, a prefix reaches what LoRA and full
fine-tuning reach. Where the base has to learn something new, such as to spell, or to put a list into words, LoRA learns
more with as many parameters. More tokens do not bring a prefix to that level: it adds to what tokens attend to, and
cannot change how they attend (Petrov et al. 2024)."""

TASKS = {
    "phonemes": """\
A BART that knows American phonemes learns British ones, for words that it has all the symbols for. PEFT's prefix is in
the decoder's self-attention only, so it has three times the tokens for as many parameters. The model has 64 positions,
which a prefix shares with the word. 1,000 steps of 32 words go through the 2,794 training words some eleven times.""",
    "family": """\
The task is to tell from an E2E reference whether the place is said to be good for families, said not to be, or neither.
Every contender also trains the classifier's head, at a learning rate of 0.001; only its other parameters are counted.
The bare base has a head of random numbers; "head alone" trains that head at its own best rate. 200 steps of 16 read
3,200 of the 42,061 texts. Test data are the first 1,000 texts of their file, which are labelled "unsaid" more often
than the rest.""",
    "e2e": """\
The task is to put the meaning representation of a restaurant into words (Novikova et al. 2017). BLEU and chrF are
measured on greedy answers to 200 prompts, the loss on 500 examples. 200 steps of 8 read 1,600 of the 42,061
examples.""",
}

SETTINGS = """\
The default prefix, and others that differ from it in one setting. Each has its own best learning rate, chosen from the
three around the default's (from four for the MLP, from six for "head at the same rate"). For some, the best rate is at
the low end of the three: "random" on Family friendly, and lengths 1, 2 and 8 on phonemes. The phoneme model's sequences
share 64 positions with the prefix, so its lengths are not those of the other tasks.

No setting is ahead of the default on all three tasks, and few are ahead on one by more than seeds differ. On phonemes,
the MLP gains, and so does a start from noise, judged by its loss. A frozen first token loses there, where it is one of
four, and costs nothing where it is one of twenty. Zeros are the worst start everywhere. Twenty tokens are enough here:
more bring nothing, and forget more or become unstable."""

VARIANTS = """\
Each variant is tried on the default prefix with one seed, at its own best of three or four learning rates. Those whose
validation loss is below the default's are then trained with three seeds and measured on test data. With one seed, small
differences decide. For some, the best rate was the last one tried: at the high end for "upper half only", for RMS on
phonemes, and for values at a third of the rate on E2E; at the low end for values at three times the rate on phonemes
and on Family friendly, and for the MLP of three layers on phonemes.

In a decoder, none has a loss below the default's, so antefix has none of them as an option. On phonemes, several do,
two by far. Prefix-Tuning+ (Wang et al. 2025) adds a matrix to each layer in place of tokens. That is 16 times as many
numbers as the prefix has there, and no keys and values that a file, a mixed batch or vLLM could take. A prefix in
cross-attention only, with three times the tokens for as many numbers, needs no option of its own: it is
`sites=("cross",)`, and worth a try with any encoder-decoder."""

TWINS = """\
In a decoder, the two are the same function: from PEFT's numbers, antefix trains to PEFT's loss. They differ in where
they start: antefix from a text, PEFT from the noise that `get_peft_model` leaves. Set to the same text, PEFT's trains
to the same figures, up to rounding. It takes more seeds to tell one start from the other, so this table has six. Runs
with the same seed see the same examples in the same order. Beside each of PEFT's columns are the mean and standard
deviation of the prefix's differences from it."""

FEW = """\
The learning rates are the same, with a third of the steps, and examples are drawn by the seed. With three seeds,
few differences are certain. On E2E and Family friendly, the prefix's loss is below PEFT's with all three seeds at
100 examples, and with one or two of them at the other sizes. On E2E, its mean BLEU is above PEFT's with 50 examples
and below from 100 on. On phonemes, where PEFT's tokens are all in the decoder, its loss is the higher in all runs
but one."""

FORGETTING = """\
Loss on 6,144 tokens from the last tenth of WikiText-2, with what was trained on E2E switched on. The base never read
this text, though its tokenizer did. A prefix or a LoRA that is switched off leaves the base as it was, to the bit; full
fine-tuning cannot be switched off."""

LONGER = """\
200 steps read 1,600 of E2E's 42,061 examples. With 1,000 steps and three seeds, each at its best learning rate there,
both are far better, and as far apart as before:"""

DOCUMENTS = """\
Each document is a register of 18 invented people. `antefix distill` distils it with 1,500 lessons: questions that the
base asks itself about halves of the register, each seen 20 times. The prefix is measured by 72 questions in four
wordings that the base has never read; with the register in its context, it answers them nevertheless. Divergence is
from the base with the whole register in its context, in nats per token.

The number of lessons, their learning rate, how often they are seen and the use of halves were chosen on three registers
and their questions. "Unseen" marks three other registers, on which nothing was chosen. There, too, each of the nine
prefixes answers better than the base with the register in its context. With one token for twenty, a prefix still does;
with one for forty, it answers about as well as that base. A teacher that reads half as much finds a person more surely,
and halves that begin elsewhere each time make it ask about more. Where the teacher read the whole register "at once",
the prefix comes near the register in context, but not past it.

"By default" means the defaults of the command, except for lessons that are just as short: 1,024 of three kinds, seen 20
times. The unseen registers were run again after a change that holds out a question that the base asks itself together
with all its answers; the others were run before it."""
