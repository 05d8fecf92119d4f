"""Time series: forecast tomorrow's maximum temperature in Seattle from the weather of the last two weeks.

    python examples/weather.py [--model-path runs/weather] [--epochs 30]

The series, from vega_datasets, is 1,461 days long. The network trains on 2012 and 2013. The winter and the summer of
2014 choose the models, as two sets; 2015 is for the report, beside the forecast "as today". Evaluations, checkpoints
and the stop follow steps here, not epochs.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from vega_datasets import data

from accmt import HyperParameters, Trainer, set_seed

DAYS = 14


class Forecast(nn.Module):
    """Read the last days with a recurrent network, and return by how much the next one is warmer."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.GRU(4, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, days: Tensor) -> Tensor:
        change: Tensor = 4 * self.head(self.reader(days)[1][0])
        return change.squeeze(1)


def datasets() -> dict[str, TensorDataset]:
    """Return the data of 2012 and 2013, of the two halves of 2014, and of 2015."""
    table = data.seattle_weather()
    days = torch.tensor(table[["temp_max", "temp_min", "precipitation", "wind"]].to_numpy()).float()
    scaled = (days - days[:730].mean(0)) / days[:730].std(0)
    windows = scaled.unfold(0, DAYS, 1)[:-1].transpose(1, 2)
    change = days[DAYS:, 0] - days[DAYS - 1 : -1, 0]
    year, month = (torch.tensor(values[DAYS:].to_numpy()) for values in (table.date.dt.year, table.date.dt.month))
    summer = (month >= 4) & (month <= 9)
    chosen = {"train": year < 2014, "winter": (year == 2014) & ~summer, "summer": (year == 2014) & summer}
    return {key: TensorDataset(windows[of], change[of]) for key, of in {**chosen, "2015": year == 2015}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="runs/weather", help="folder for models and checkpoints (%(default)s)")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()

    set_seed(0)
    hps = HyperParameters(arguments.epochs, batch_size=(32, 512), optimizer="AdamW", optim_kwargs={"lr": 5e-3})
    cadences = {
        "evaluate_every": "30 steps",
        "checkpoint_every": "4 evaluations",
        "stop_when": "stalled(mae, 8, 0.005)",
    }
    trainer = Trainer(hps, arguments.model_path, held_out="2015", dataloader_num_workers=0, **cadences)
    trainer.register_model_saving("best_mae")
    trainer.register_model_saving("best_worst(mae)")
    trainer.register_model_saving("best_avg(mae, 3)", name="steady")  # the mean of three evaluations, against luck
    validation = datasets()
    trainer.fit(Forecast(), validation.pop("train"), validation, loss_fn=nn.L1Loss())

    print(f"\n'As today' has a mae of {validation['2015'].tensors[1].abs().mean():.2f} degrees in 2015.")
    print(f"The report: {trainer.report().path}")


if __name__ == "__main__":
    main()
